"""Two versions' answers to samples of this head that a person has labelled, when somebody asks for it.

A version that is not in memory is loaded for it, one at a time, and let go.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from edge.head.config import HeadSettings
from edge.head.follow import ModelFollower
from edge.head.models import Models
from edge.head.serving.pins import COMPARED
from edge.head.serving.progress import Progress
from edge.head.serving.slot import Slot
from edge.head.trial.labelled import LabelledSamples, count_labelled
from edge.head.trial.others import Others, Said
from edge.head.trial.said import finding_of
from edge.head.trial.trial import Counts
from edge.head.ways import Ways
from splitmesh.api.serving.v1 import serving_pb2 as pb
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.model.manifest import Finding
from splitmesh.samples.beside import Beside, folders_beside

MAX_SAMPLES = 1000
MOST_SAMPLES = 100_000
TELL_S = 1.0
"""Between two messages of one comparison."""


@dataclass(frozen=True, slots=True)
class Asked:
    """For a comparison."""

    model: str
    serving: int
    candidate: int
    labelled_after: datetime | None
    max_samples: int

    @classmethod
    def of(cls, request: pb.CompareRequest) -> Asked:
        """MeshError FIELD_INVALID names what is wrong."""
        for field in ("serving", "candidate"):
            if getattr(request, field) < 1:
                raise field_error(field, "is 0, expected a version")
        if request.serving == request.candidate:
            raise field_error("candidate", "is the version that it is to be compared with")
        after = None
        if request.HasField("labelled_after"):
            try:
                after = request.labelled_after.ToDatetime(tzinfo=UTC)
            except (ValueError, OverflowError) as error:
                raise field_error("labelled_after", "is no time") from error
        most = min(request.max_samples or MAX_SAMPLES, MOST_SAMPLES)
        return cls(request.model, request.serving, request.candidate, after, most)


@dataclass(frozen=True, slots=True)
class Step:
    """How far a comparison is."""

    counts: Counts
    done: int
    total: int


class Comparer:
    """Of this head.

    Args:
        models: what is loaded, and what brings what is not.
        others: computes behind all frames that somebody waits for.
        settings: where the samples are.
    """

    def __init__(self, models: Models, others: Others, settings: HeadSettings) -> None:
        self._models = models
        self._settings = settings
        self._samples = LabelledSamples(
            Beside(lambda: folders_beside(settings.data_dir)), others, settings.default_deadline_ms / 1e3
        )
        self._busy = False

    async def compare(self, asked: Asked) -> AsyncGenerator[Step]:
        """The last step has all. MODEL_NOT_FOUND, VERSION_NOT_FOUND, QUEUE_FULL, CALIBRATION_INSUFFICIENT."""
        follower = self._models.follower(asked.model)
        if follower is None:
            raise MeshError(Reason.MODEL_NOT_FOUND, f"this head does not serve {asked.model!r}")
        if self._busy:
            raise MeshError(Reason.QUEUE_FULL, "another comparison is under way", retry_after_s=5.0)
        self._busy = True
        try:
            records = await self._samples.find(asked.model, asked.labelled_after, asked.max_samples)
            if not records:
                raise MeshError(
                    Reason.CALIBRATION_INSUFFICIENT,
                    f"this head keeps no labelled picture of {asked.model!r} that fits",
                    metadata={"model": asked.model},
                )
            counts, said, total, told_s = Counts(""), dict[str, Said | None](), len(records), time.monotonic()
            for number, version in enumerate((asked.serving, asked.candidate)):
                async with self._loaded(follower, version) as (ways, finding):
                    for done, record in enumerate(records, 1):
                        one = await self._samples.answer(ways, record, finding)
                        if number == 0:
                            said[record.id] = one
                        else:
                            count_labelled(counts, record, said.pop(record.id), one)
                        if time.monotonic() - told_s >= TELL_S:
                            told_s = time.monotonic()
                            yield Step(counts, (number * total + done) // 2, total)
            yield Step(counts, total, total)
        finally:
            self._busy = False

    @asynccontextmanager
    async def _loaded(self, follower: ModelFollower, version: int) -> AsyncIterator[tuple[Ways, Finding | None]]:
        """In memory as long as it is used."""
        here: list[Slot] = [follower.serving, follower.candidate]
        for slot in here:
            if slot.loaded is not None and slot.loaded.info.version == version:
                with slot.loaded.ways.current.use():
                    yield slot.loaded.ways, finding_of(slot.loaded.ways)
                return
        info = await follower.find(version)
        progress = Progress(version, lambda: None)
        beside = None if follower.ways is None else follower.ways.current
        fresh = await follower.bringer.bring(
            info, progress, wait_s=self._settings.switch_wait_s, note=follower.pins.name(COMPARED), beside=beside
        )
        try:
            yield fresh.ways, finding_of(fresh.ways)
        finally:
            await fresh.retire()
            await follower.pins.forget(COMPARED)
