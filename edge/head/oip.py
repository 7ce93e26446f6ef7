"""The head as clients of the Open Inference Protocol see it: one model, whether it is whole, split, or split with exits.

Every sample of a request is a frame with a gate, a deadline and a trace of its own; the answers are put together. Knows frames
and their answers; how they come about is ``answer.py``'s, messages are ``splitmesh.oip``'s.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import fields

import numpy as np

from edge.head.active import ActiveModel
from edge.head.answer import Answerer
from edge.head.config import HeadSettings
from edge.head.frame import FrameAnswer, FrameRequest, Picture, StageTimes, Tensors
from edge.head.models import Models
from edge.head.scores import ScoreForms, as_output
from edge.head.ways import Ways
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.oip.backend import Batch, Inferred, Listed, Served, Spent, VersionMovedError
from splitmesh.oip.describe import takes_batches
from splitmesh.oip.feeds import pictures_of, tensors_of
from splitmesh.oip.parameters import Value
from splitmesh.oip.request import Call
from splitmesh.oip.together import all_or_none
from splitmesh.tensor.spec import Array

_COMPUTATIONS = itertools.count(1)


class HeadBackend:
    """Implements :class:`splitmesh.oip.backend.Backend`."""

    def __init__(self, models: Models, answerer: Answerer, settings: HeadSettings) -> None:
        self._models = models
        self._answerer = answerer
        self._settings = settings
        self._forms = ScoreForms(settings.data_dir / "scores")
        self._told: dict[str, tuple[Ways, Served]] = {}
        """What was said last of each model, and of which version, in all its ways, it was true."""

    async def ready(self) -> bool:
        """Whether a version of every model is loaded, and there is one."""
        index = await self.index()
        return bool(index) and all(one.ready for one in index)

    async def served(self, model: str, version: str) -> Served:
        """The active version; a head answers with no other. MODEL_NOT_FOUND, VERSION_NOT_FOUND, NOT_READY."""
        ways = self._models.ways(model)
        active = ways.all[0]
        info, settings = active.info, self._settings
        if version not in ("", settings.alias, str(info.version)):
            raise MeshError(
                Reason.VERSION_NOT_FOUND,
                f"{info.model!r} is at version {info.version} here ({settings.alias}), not {version!r}",
            )
        if active.manifest.exit is not None:
            await self._forms.share(ways.all)
        told = self._told.get(info.model)
        if told is None or told[0] is not ways:
            told = self._told[info.model] = (ways, self._about(active))
        return told[1]

    def _about(self, active: ActiveModel) -> Served:
        info, settings = active.info, self._settings
        return Served(
            model=info.model,
            version=info.version,
            manifest=active.manifest,
            max_batch=min(settings.oip_max_batch, settings.max_frames) if takes_batches(active.manifest) else 0,
            backend=active.session.providers[0],
            max_queue=settings.max_frames,
            max_delay_us=0,
            default_timeout_us=settings.default_deadline_ms * 1000,
            priority_levels=0,
            facts={"node": settings.node, "alias": settings.alias},
        )

    async def infer(self, served: Served, call: Call) -> Inferred:
        """All samples' answers, or the first error, after which the others are given up. VersionMovedError when the alias moved
        since ``served`` was told: outputs, labels and the version in the answer would not be those of one version."""
        frames = [self._frame(served, call, sample) for sample in range(call.samples)]
        answers = await all_or_none([self._answerer.answer(frame) for frame in frames])
        if any(answer.active.info.version not in self._versions(served) for answer in answers):
            raise VersionMovedError(
                Reason.NOT_READY,
                f"{served.model!r} moved on from version {served.version} meanwhile",
                retry_after_s=0.1,
            )
        manifest = answers[0].active.manifest
        return Inferred(
            outputs=_joined([_outputs(answer) for answer in answers]),
            labels={manifest.class_output: manifest.labels} if manifest.labels else {},
            parameters=_parameters(answers, timings=call.options.timings),
            spent=_spent(answers),
            batches=[Batch(next(_COMPUTATIONS), 1, _ns(answer.times.head_ms)) for answer in answers],
        )

    def _versions(self, served: Served) -> set[int]:
        """Of all the ways that a version is answered in: they differ in what crosses, and give the same outputs."""
        told = self._told.get(served.model)
        if told is None or told[1] is not served:
            return {served.version}
        return {way.info.version for way in told[0].all}

    async def index(self) -> Sequence[Listed]:
        """The models of the head's settings, and those that it was assigned."""
        listed = []
        for name in sorted(self._models.names()):
            try:
                listed.append(Listed(name, str(self._models.ways(name).all[0].info.version), ready=True))
            except MeshError as error:
                listed.append(Listed(name, "", ready=False, reason=error.message))
        return listed

    async def load(self, model: str) -> None:
        """Nothing to do for a model that is loaded; MODEL_NOT_FOUND, NOT_READY."""
        if not model:
            raise field_error("model_name", "is empty")
        self._models.ways(model)

    async def unload(self, model: str) -> None:
        """UNIMPLEMENTED: cameras rely on the models that are here."""
        raise MeshError(Reason.UNIMPLEMENTED, "which models a head serves is its setting `models`, or assigned")

    def _frame(self, served: Served, call: Call, sample: int) -> FrameRequest:
        options = call.options
        return FrameRequest(
            content=_content(served, call, sample),
            model=served.model,
            camera_id=options.camera_id,
            frame_id=_frame_id(call.id),
            deadline_ms=options.deadline_ms,
            traceparent=options.traceparent,
            outputs_needed=True,
        )


def _content(served: Served, call: Call, sample: int) -> Picture | Tensors:
    if pictures := pictures_of(call, served.manifest, served.model):
        return Picture(pictures[sample])
    rows = [tensor.row(sample) for tensor in tensors_of(call)]
    return Tensors(tuple((row.spec, row.data) for row in rows))


def _frame_id(request_id: str) -> int:
    """A number that the sender gave; 0 for any other name."""
    return int(request_id) if request_id.isascii() and request_id.isdigit() and len(request_id) < 19 else 0


def _outputs(answer: FrameAnswer) -> dict[str, Array]:
    """The whole model's outputs for one sample; an exit's classes in the form of the model's own."""
    if answer.outputs is not None:
        return dict(answer.outputs)
    active, row = answer.active, answer.row
    if row is None or active.scores is None:
        raise AssertionError("an exit answers for the outputs only when their form is known")
    info = next(one for one in active.manifest.whole.outputs if one.name == active.manifest.class_output)
    return {info.name: as_output(row, active.scores, info)}


def _joined(samples: Sequence[dict[str, Array]]) -> dict[str, Array]:
    if len(samples) == 1:
        return samples[0]
    if any(array.shape[:1] != (1,) for outputs in samples for array in outputs.values()):
        raise MeshError(
            Reason.TENSOR_SHAPE_MISMATCH, "the model's outputs have no row for each sample: send one sample per request"
        )
    return {name: np.concatenate([outputs[name] for outputs in samples]) for name in samples[0]}


def _parameters(answers: Sequence[FrameAnswer], *, timings: bool) -> dict[str, Value]:
    """Lists hold one entry for each sample; numbers are of all: the bytes together, the least confidence, the longest times."""
    parameters: dict[str, Value] = {
        "answered_by": ",".join(answer.answered_by.value for answer in answers),
        "model_version": ",".join(str(answer.active.info.version) for answer in answers),
        "trace_id": ",".join(answer.trace_id for answer in answers),
        "exit_confidence": min(answer.exit_confidence for answer in answers),
        "uplink_bytes": sum(answer.uplink_bytes for answer in answers),
    }
    if any(answer.fallback_reason for answer in answers):
        parameters["fallback_reason"] = ",".join(answer.fallback_reason or "" for answer in answers)
    if any(answer.routing for answer in answers):
        parameters["routing_why"] = ",".join(answer.routing.why if answer.routing else "" for answer in answers)
    if timings:
        for field in fields(StageTimes):
            parameters[field.name] = max(getattr(answer.times, field.name) for answer in answers)
    return parameters


def _spent(answers: Sequence[FrameAnswer]) -> Spent:
    times = [answer.times for answer in answers]
    return Spent(
        queue_ns=_ns(max(one.queue_ms for one in times)),
        input_ns=_ns(max(one.decode_ms for one in times)),
        infer_ns=_ns(max(one.head_ms + one.encode_ms + one.link_ms + one.tail_queue_ms + one.tail_ms for one in times)),
    )


def _ns(ms: float) -> int:
    return max(0, round(ms * 1e6))
