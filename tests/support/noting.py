"""A process that notes records in a spool until it is killed, and says of each one that it was told to be on disk.

Run as ``python -m tests.support.noting FOLDER``: one line ``boot sequence text`` for each acknowledged note.
"""

from __future__ import annotations

import itertools
import sys
from collections import deque
from concurrent.futures import Future
from pathlib import Path

from splitmesh.spool.spool import Spool
from splitmesh.spool.values import Dropped, Entry, Noted

AT_ONCE = 8


def main() -> None:
    """Until it is killed."""
    spool = Spool(Path(sys.argv[1]))
    spool.start()
    waiting: deque[tuple[str, Future[Noted | Dropped]]] = deque()
    for number in itertools.count(1):
        text = f"record-{number}-{'x' * (number * 37 % 500)}"
        waiting.append((text, spool.note(Entry("samples", "sample", text.encode()))))
        if len(waiting) >= AT_ONCE:
            text, future = waiting.popleft()
            noted = future.result(30)
            if isinstance(noted, Noted):
                sys.stdout.write(f"{noted.boot_id} {noted.sequence} {text}\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
