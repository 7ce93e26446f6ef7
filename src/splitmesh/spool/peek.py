"""How much waits in spools that other processes of this host write, read beside them. Changes nothing and takes no lock."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from splitmesh.spool.damaged import FILE

BUSY_S = 0.5


def peek(folders: Iterable[Path]) -> tuple[int, int]:
    """Records that wait, and that were dropped since the spools were made; a spool that cannot be read counts nothing.

    By their counts and not by their rows: this is asked with every heartbeat, and a spool may hold very many.
    """
    waiting = dropped = 0
    for folder in folders:
        path = folder / FILE
        if not path.is_file():
            continue
        try:
            with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_S)) as db:
                db.execute("BEGIN")  # both sums at one moment
                (open_,) = db.execute("SELECT coalesce(sum(captured - committed), 0) FROM counted").fetchone()
                (gone,) = db.execute("SELECT coalesce(sum(n), 0) FROM dropped").fetchone()
        except sqlite3.Error:
            continue
        waiting += max(0, open_ - gone)
        dropped += gone
    return waiting, dropped
