"""What was chosen for a segment on this host, kept on disk: a restart measures nothing that was measured before.

A choice holds while the segment, the host, what the host is asked to do and the rules of choosing are the same; anything else in
the file, or no file, means that it is to be made again. Knows no way of measuring.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from splitmesh.durable import write_file
from splitmesh.runtime.candidates import Candidate, Measured, Wish

log = logging.getLogger(__name__)

RULES = 1
"""Of measuring and choosing; one more whenever a choice could come out otherwise."""
MAX_BYTES = 1 << 20
MAX_FILES = 256
"""Kept; those written longest ago go first."""


@dataclass(frozen=True, slots=True)
class Choice:
    """How a segment is computed here, and what else was looked at."""

    chosen: Measured
    candidates: tuple[Measured, ...] = ()
    """The chosen one too."""
    remembered: bool = field(default=False, compare=False)
    """Read from disk."""


@dataclass(frozen=True, slots=True)
class ChoiceKey:
    """What a choice depends on."""

    segment: str
    """SHA-256 of its bytes, see :func:`digest_of`."""
    host: str
    """The host's fingerprint."""
    wish: Wish

    def answers(self) -> dict[str, Any]:
        """As it stands in the file."""
        return {"rules": RULES, "segment": self.segment, "host": self.host, "wish": asdict(self.wish)}


def digest_of(pieces: Sequence[bytes]) -> str:
    """SHA-256 over a segment's pieces: of a single one its own."""
    digests = [hashlib.sha256(piece) for piece in pieces]
    if len(digests) == 1:
        return digests[0].hexdigest()
    return hashlib.sha256(b"".join(one.digest() for one in digests)).hexdigest()


class ChoiceStore:
    """Choices in a folder, one file for each segment. Blocking."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, key: ChoiceKey) -> Choice | None:
        """The choice, if it holds; what cannot be read is as if it were not there."""
        path = self._path(key)
        try:
            with path.open("rb") as file:
                content = file.read(MAX_BYTES + 1)
            if len(content) > MAX_BYTES:
                raise ValueError(f"has more than {MAX_BYTES} bytes")
            told = json.loads(content)
            # Through JSON, which has lists for tuples.
            if told["key"] != json.loads(json.dumps(key.answers())):
                log.info("the host, its settings or the rules have changed since %s was chosen", path.name)
                return None
            candidates = tuple(_measured(one) for one in told["candidates"])
            chosen = candidates[_index(told["chosen"], candidates)]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
            log.warning("the choice in %s cannot be used and is made again: %s", path.name, error)
            return None
        return Choice(chosen, candidates, remembered=True)

    def write(self, key: ChoiceKey, choice: Choice) -> None:
        """On disk when it returns. A disk that is full costs a measurement at the next start and nothing else."""
        told = {
            "key": key.answers(),
            "chosen": choice.candidates.index(choice.chosen),
            "candidates": [asdict(one) for one in choice.candidates],
        }
        try:
            write_file(self._path(key), json.dumps(told, indent=1).encode())
            self._forget_oldest()
        except OSError as error:
            log.warning("the choice of a back end cannot be kept: %s", error)

    def _path(self, key: ChoiceKey) -> Path:
        return self._folder / f"{key.segment}.json"

    def _forget_oldest(self) -> None:
        files = sorted(self._folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
        for path in files[: max(0, len(files) - MAX_FILES)]:
            path.unlink(missing_ok=True)


def _measured(told: dict[str, Any]) -> Measured:
    candidate = told["candidate"]
    made = Measured(**{**told, "candidate": Candidate(**candidate)})
    numbers = (made.p50_ms, made.p99_ms, made.frames_per_s, made.error, made.memory_bytes, made.runs)
    texts = (made.refused, made.candidate.backend, made.candidate.precision)
    threads = made.candidate.threads
    if not all(type(one) in (int, float) and one >= 0 for one in numbers) or not all(type(one) is str for one in texts):
        raise ValueError("holds a figure that is none")
    if type(threads) is not int or threads < 1:
        raise ValueError("holds a number of threads that is none")
    return made


def _index(told: object, candidates: Sequence[Measured]) -> int:
    if type(told) is not int or not 0 <= told < len(candidates) or candidates[told].refused:
        raise ValueError("chooses what it does not hold, or what was refused")
    return told
