"""A real PostgreSQL for tests: a private cluster on a Unix socket, and a fresh database for whoever asks.

The cluster starts with the first database, is shared by the whole test process and ends with it, however that ends: a shell
holds it and waits for the end of its standard input. Where PostgreSQL is not installed the calling test skips (or fails, see
``splitmesh.testing.parts``). Its default collation is not by code point, so that a column that should be is found out.
"""

from __future__ import annotations

import asyncio
import atexit
import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import make_url

from splitmesh.testing.parts import find_postgres, require_part

_STOP_S = 20.0
_SCRIPT = """
set -e
cd "$2"
"$1/initdb" -D "$2/data" -U postgres --auth=trust --no-sync --encoding=UTF8 --locale=C.UTF-8 \
    --locale-provider=icu --icu-locale=en-US >"$2/initdb.log" 2>&1
trap '"$1/pg_ctl" -D "$2/data" -m immediate stop >/dev/null 2>&1; rm -rf "$2"/*' EXIT
"$1/pg_ctl" -D "$2/data" -w -l "$2/server.log" -o "$3" start >/dev/null
echo ready
cat >/dev/null
"""
_OPTIONS = "-c fsync=off -c full_page_writes=off -c shared_buffers=16MB -c max_connections=60 -c listen_addresses=''"


class PostgresServer:
    """A running server."""

    def __init__(self) -> None:
        programs = find_postgres()
        require_part("PostgreSQL", programs is not None)
        assert programs is not None
        self.folder = Path(tempfile.mkdtemp(prefix="splitmesh-postgres-"))
        self._names = itertools.count(1)
        self._programs, self._options = programs, f"{_OPTIONS} -k {self.folder}"
        self._shell = subprocess.Popen(
            [*_unprivileged(self.folder), "sh", "-c", _SCRIPT, "sh", str(programs), str(self.folder), self._options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._shell.stdout is not None
        if self._shell.stdout.readline() != "ready\n":
            logs = [path.read_text() for path in self.folder.glob("*.log")]
            raise AssertionError("PostgreSQL did not start:\n" + "\n".join(logs))

    def url(self, database: str = "postgres") -> str:
        """Where to connect."""
        return f"postgresql://postgres@/{database}?host={self.folder}"

    def execute(self, statement: str, **values: object) -> list[tuple[Any, ...]]:
        """Runs one statement as the administrator, and its rows."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            found = connection.execute(statement, values)
            return found.fetchall() if found.description else []

    @contextmanager
    def database(self, options: str = "") -> Iterator[str]:
        """The URL of an empty database, which is gone afterwards with all connections to it."""
        name = f"test_{next(self._names)}"
        self.execute(f"CREATE DATABASE {name} {options}")
        try:
            yield self.url(name)
        finally:
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def control(self, *command: str) -> None:
        """``pg_ctl`` on this cluster: ``stop`` or ``start``."""
        options = ["-o", self._options] if "start" in command else []
        subprocess.run(
            [
                *_unprivileged(self.folder),
                str(self._programs / "pg_ctl"),
                *("-D", str(self.folder / "data"), "-w", "-l", str(self.folder / "server.log")),
                *options,
                *command,
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=self.folder,
        )

    def stop(self) -> None:
        """Ends it and removes its folder."""
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        self._shell.stdin.close()
        self._shell.wait(timeout=_STOP_S)
        self._shell.stdout.close()
        shutil.rmtree(self.folder, ignore_errors=True)


@cache
def shared_server() -> PostgresServer:
    """The one of this process; skips the calling test where PostgreSQL is missing."""
    server = PostgresServer()
    atexit.register(server.stop)
    return server


@contextmanager
def fresh_database() -> Iterator[str]:
    """The URL of an empty database on the shared server."""
    with shared_server().database() as url:
        yield url


async def standing_by(url: str) -> None:
    """A registry has asked for the owner's lock of a database and not got it."""
    asked = (
        "SELECT 1 FROM pg_stat_activity WHERE query LIKE %(query)s AND state = 'idle' AND datname = %(name)s AND NOT {}"
    )
    holds = "EXISTS (SELECT 1 FROM pg_locks WHERE pg_locks.pid = pg_stat_activity.pid AND locktype = 'advisory')"
    values = {"query": "SELECT pg_try_advisory_lock%", "name": make_url(url).database}
    async with asyncio.timeout(_STOP_S):
        while not await asyncio.to_thread(shared_server().execute, asked.format(holds), **values):
            pass


def lose_locks(url: str) -> None:
    """The server ends the connections that hold a registry's locks on a database, and has let go of them on return."""
    held = "SELECT DISTINCT pid FROM pg_locks JOIN pg_database ON oid = database WHERE locktype = 'advisory'"
    of_this = f"{held} AND granted AND datname = %(name)s"
    name = make_url(url).database
    for (pid,) in shared_server().execute(of_this, name=name):
        shared_server().execute("SELECT pg_terminate_backend(%(pid)s, 10000)", pid=pid)


def _unprivileged(folder: Path) -> list[str]:
    """PostgreSQL refuses to run as root: what to put before a command, and a folder that user may write to."""
    if os.geteuid() != 0:
        return []
    known = {one.pw_name: one for one in pwd.getpwall()}
    user = known.get("postgres") or known["nobody"]
    os.chown(folder, user.pw_uid, user.pw_gid)
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
