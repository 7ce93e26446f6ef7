"""Samples that a person has labelled, answered again: for comparisons, and for trials that are judged by labels.

Which samples are kept is not by chance (hard, audited and disputed ones are), so the counts are of those, not of all frames.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

from edge.head.config import HeadSettings
from edge.head.disk import DiskCalls
from edge.head.frame import FrameRequest, Picture
from edge.head.models import Models
from edge.head.trial.others import NotMadeError, Others, Said
from edge.head.trial.said import finding_of
from edge.head.trial.trial import Counts, Trial
from edge.head.ways import Ways
from splitmesh.errors import MeshError
from splitmesh.model.manifest import Finding
from splitmesh.samples.beside import FOLDER, Beside
from splitmesh.samples.kept import Filter
from splitmesh.samples.record import SampleRecord

log = logging.getLogger(__name__)

AT_ONCE = 1000
"""Samples of one look."""


class LabelledSamples:
    """Of some folders; a version has ``within_s`` for each."""

    def __init__(self, samples: Beside, others: Others, within_s: float) -> None:
        self._samples = samples
        self._others = others
        self._within_s = within_s
        self._disk = DiskCalls(1, "labelled")

    async def find(self, model: str, after: datetime | None, most: int) -> list[SampleRecord]:
        """With a picture, labelled after that; the earliest labels first, and those of one moment all or none beyond ``most``."""
        return await self._disk.do(partial(_labelled, self._samples, model, after, most))

    async def answer(self, ways: Ways, record: SampleRecord, finding: Finding | None) -> Said | None:
        """By a version that is loaded; None: nothing is known of what it would have said."""
        try:
            picture = await self._disk.do(partial(self._samples.picture, record.id))
            request = FrameRequest(Picture(picture), model=record.model, camera_id=record.camera)
            return await self._others.answer(ways, request, self._within_s, finding)
        except (NotMadeError, MeshError) as error:
            log.debug("a sample could not be answered: %r", error)
            return None


def count_labelled(counts: Counts, record: SampleRecord, serving: Said | None, candidate: Said | None) -> None:
    """One sample, by its label."""
    if serving is None or candidate is None or record.label is None:
        counts.not_made += 1
    else:
        counts.pair(record.label, serving.name, candidate.name)


def _labelled(samples: Beside, model: str, after: datetime | None, most: int) -> list[SampleRecord]:
    found = [
        (one.record.labelled_at, one.record.id, one.record)
        for one in samples.all(Filter(labelled=True, model=model))
        if one.record.picture is not None and one.record.labelled_at is not None
        if after is None or one.record.labelled_at > after
    ]
    found.sort(key=lambda one: one[:2])
    last = found[most - 1][0] if len(found) > most else None
    return [record for at, _, record in found if last is None or at <= last]


@dataclass(slots=True)
class _Seen:
    """Of one trial."""

    trial_id: str
    labelled: datetime
    """When the last sample was labelled that is counted."""
    counted: set[str] = field(default_factory=set)
    """Samples."""


class LabelledTrials:
    """Counts the pairs of trials that are judged by labels: those of samples of this process that were labelled since the trial
    began in it. What was labelled before counts in no process' sums twice.

    Args:
        models: has the trials.
        others: computes behind all frames that somebody waits for.
        settings: where the samples are.
        every_s: between two looks at what was labelled.
    """

    def __init__(self, models: Models, others: Others, settings: HeadSettings, *, every_s: float) -> None:
        self._models = models
        self._every_s = every_s
        beside = Beside(lambda: [settings.data_dir / FOLDER])
        self._samples = LabelledSamples(beside, others, settings.default_deadline_ms / 1e3)
        self._seen: dict[str, _Seen] = {}
        """By model."""
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.create_task(self._for_ever())

    async def stop(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def look(self) -> None:
        """Once, at every trial."""
        for follower in self._models.followers():
            trial, ways, model = follower.trial, follower.ways, follower.model
            if trial is None or ways is None or trial.order.reference != "LABELS":
                continue
            seen = self._seen.get(model)
            if seen is None or seen.trial_id != trial.order.trial_id:
                self._seen[model] = _Seen(trial.order.trial_id, datetime.now(UTC))
                continue
            with ways.current.use(), trial.candidate.current.use():
                await self._count(model, trial, ways, seen)

    async def _count(self, model: str, trial: Trial, ways: Ways, seen: _Seen) -> None:
        for record in await self._samples.find(model, seen.labelled, AT_ONCE):
            if record.id not in seen.counted:  # else it was labelled again
                serving = await self._samples.answer(ways, record, finding_of(ways))
                candidate = await self._samples.answer(trial.candidate, record, finding_of(trial.candidate))
                count_labelled(trial.counts, record, serving, candidate)
                trial.changed()
            seen.counted.add(record.id)
            seen.labelled = record.labelled_at or seen.labelled

    async def _for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            try:
                await self.look()
            except Exception as error:
                unforeseen = not isinstance(error, MeshError)
                log.warning("labelled samples could not be compared: %s", error, exc_info=unforeseen)
