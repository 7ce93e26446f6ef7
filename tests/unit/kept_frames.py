"""Frames as a head tells its observers of them, and disks that hang or fail, for the tests of what keeps samples."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np

from edge.head.active import ActiveModel
from edge.head.config import HeadSettings
from edge.head.decided import Decided, TailSaid
from edge.head.frame import FrameAnswer, FrameRequest, Picture, Tensors
from edge.head.perceive import Perceived
from edge.head.samples.keeper import SampleKeeper
from splitmesh.client.answers import AnsweredBy
from splitmesh.client.registry import VersionInfo
from splitmesh.errors import MeshError, Reason
from splitmesh.model.manifest import MANIFEST, Manifest
from splitmesh.routing.gate import Verdict, Why
from splitmesh.samples.beside import Beside, folders_of
from splitmesh.samples.kept import Sample, StoreCounts, StoreLimits
from splitmesh.samples.store import SampleStore
from splitmesh.tensor.spec import Array
from tests.support.models import CUT, LABELS, exit_version
from tests.unit.sample_records import ROOMY, picture, spread

WAIT_S = 20.0
NOW = datetime(2026, 3, 4, 10, 0, tzinfo=UTC)
AGREES = TailSaid(1, 0.75, disagreed=False)
DIFFERS = TailSaid(2, 0.5, disagreed=True)


def settings(folder: Path, **fields: Any) -> HeadSettings:
    values: dict[str, Any] = {"data_dir": folder, "node": "mec-1", "site": "lyon", "sample_max_bytes": 10_000_000}
    return HeadSettings(**{**values, **fields})


@cache
def manifest() -> Manifest:
    return Manifest.from_json(exit_version(labels=LABELS)[MANIFEST])


def frame(
    n: int = 0,
    *,
    why: Why = Why.UNSURE,
    tail: TailSaid | None = AGREES,
    content: Picture | Tensors | None = None,
    camera: str = "line-1",
    ease: float = 0.25,
    threshold: float = 0.5,
    answer: int = 1,
    fallback: Reason | None = None,
    outputs: dict[str, Array] | None = None,
    said: Manifest | None = None,
) -> Decided:
    """Frame ``n``, a minute after the one before, with a picture of its own."""
    info = VersionInfo("parts", 3, 0, {}, "push", "", (), NOW)
    active = ActiveModel(info, said or manifest(), cast(Any, None), None)
    row = np.array([[0.25, 0.5, 0.25]])
    verdict = Verdict(why is Why.SURE, why, ease, threshold, 0.5, answer, None)
    by = AnsweredBy.CLOUD_TAIL if fallback is None else AnsweredBy.EDGE_FALLBACK
    seen = Perceived(
        outputs or {}, row, 0, verdict, None, None, 0, 0, 0, 0, complete=bool(outputs), score="max_probability"
    )
    return Decided(
        FrameRequest(content or Picture(memoryview(picture(spread(n)))), camera_id=camera),
        active,
        seen,
        verdict,
        FrameAnswer(
            n,
            active,
            f"{n:032x}",
            answered_by=by,
            fallback_reason=fallback,
            exit=0 if fallback else None,
            exit_confidence=0.5,
        ),
        NOW + timedelta(minutes=n),
        None if fallback else tail,
    )


def wire() -> dict[str, Array]:
    """What the head computed of a hard frame: the tensor that crosses, not in the order of its bytes, and one that does not."""
    crossing = np.arange(12, dtype=np.float32).reshape(1, 3, 4).transpose(0, 2, 1)
    return {CUT: crossing, "other": np.zeros((1, 2), np.float32)}


class Disk(SampleStore):
    """A store whose disk can be made to hang or to fail."""

    def __init__(self, folder: Path, limits: StoreLimits = ROOMY, *, broken: int = 0) -> None:
        super().__init__(folder, limits)
        self.hangs = threading.Event()
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.broken = broken
        self.opened = threading.Event()
        self.tried = threading.Event()

    def open(self) -> None:
        self.tried.set()
        if self.broken:
            self.broken -= 1
            raise MeshError(Reason.SERVICE_UNAVAILABLE, "no such disk")
        super().open()
        self.opened.set()

    def add(self, *arguments: Any, **named: Any) -> Any:
        if not self.goes_on.is_set():
            self.hangs.set()
            assert self.goes_on.wait(WAIT_S)
        return super().add(*arguments, **named)


def keeper(folder: Path, disk: Disk | None = None, **fields: Any) -> SampleKeeper:
    own = {name: fields.pop(name) for name in ("reopen_s", "stop_s") if name in fields}
    return SampleKeeper(settings(folder, **fields), store=disk or Disk(folder / "samples"), **own)


def kept(folder: Path) -> list[Sample]:
    """Oldest first."""
    return list(Beside(lambda: folders_of(folder)).all())[::-1]


def counts(folder: Path) -> StoreCounts:
    return Beside(lambda: folders_of(folder)).counts()


async def happens(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, WAIT_S)
