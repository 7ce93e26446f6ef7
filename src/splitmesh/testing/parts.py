"""The real programs tests talk to: where they are, and what their absence means.

One rule for every test: without the program a test is skipped with a hint, so that anyone can run the rest; where
``SPLITMESH_REQUIRE_REAL_PARTS=1`` is set, as in CI, it fails, so that nothing is skipped unseen.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

REQUIRE_VARIABLE = "SPLITMESH_REQUIRE_REAL_PARTS"

_CHECKOUT = Path(__file__).resolve().parents[3]
_INSTALL_HINT = "tools/install_real_parts.sh installs it on Debian 12"


class RealPartMissing(RuntimeError):  # noqa: N818  a state of the machine, not a mistake of the program
    """A program that a test or a tool cannot do without is not on this machine."""


def require_part(name: str, found: bool, hint: str = _INSTALL_HINT) -> None:
    """Goes on when the part was found; otherwise skips the calling test, or fails it where parts are required.

    Args:
        name: the part, for people.
        found: whether it is on this machine.
        hint: how to get it.

    Raises:
        RealPartMissing: not found, and ``SPLITMESH_REQUIRE_REAL_PARTS`` is 1.
    """
    if found:
        return
    if os.environ.get(REQUIRE_VARIABLE) == "1":
        raise RealPartMissing(f"{name} is not on this machine and {REQUIRE_VARIABLE}=1 demands it: {hint}")
    import pytest  # only a test run gets here: the installed package does not depend on pytest

    pytest.skip(f"{name} is not on this machine: {hint}")


def find_consul() -> Path | None:
    """The Consul binary on PATH, if any."""
    return _on_path("consul")


def find_buf() -> Path | None:
    """The buf binary on PATH, or the one the checkout keeps under ``build/tools``, if any."""
    local = _CHECKOUT / "build" / "tools" / "node_modules" / ".bin" / "buf"
    return _on_path("buf") or (local if os.access(local, os.X_OK) else None)


def find_skopeo() -> Path | None:
    """The skopeo binary on PATH, if any."""
    return _on_path("skopeo")


def find_mlflow() -> Path | None:
    """The ``mlflow`` program of an environment of its own under ``build/tools``, with its server, if any."""
    program = _CHECKOUT / "build" / "tools" / "mlflow" / "bin" / "mlflow"
    return program if os.access(program, os.X_OK) else None


def find_tritonclient() -> Path | None:
    """The Python of an environment that holds NVIDIA's unmodified tritonclient, under ``build/tools``, if any."""
    python = _CHECKOUT / "build" / "tools" / "tritonclient" / "bin" / "python"
    return python if os.access(python, os.X_OK) else None


def find_perf_analyzer() -> Path | None:
    """NVIDIA's perf_analyzer on PATH, or the one the checkout keeps under ``build/tools``, if any."""
    local = _CHECKOUT / "build" / "tools" / "perf_analyzer" / "perf_analyzer"
    return _on_path("perf_analyzer") or (local if os.access(local, os.X_OK) else None)


def find_postgres() -> Path | None:
    """The folder of the newest PostgreSQL server's programs (``initdb``, ``postgres``), where Debian keeps them or on PATH."""
    debian = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    newest = max(debian, key=lambda path: int(path.parts[-3]), default=None)
    found = newest or _on_path("initdb")
    return found.parent if found and os.access(found.parent / "postgres", os.X_OK) else None


def _on_path(program: str) -> Path | None:
    found = shutil.which(program)
    return Path(found) if found else None
