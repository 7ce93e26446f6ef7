"""From a request to what the head sees: decode, preprocess, run the head segment, and pack what a tail would need.

Blocking; one job in one worker thread, so that a hard frame does not queue a second time behind frames that came later.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from edge.head.active import ActiveModel
from edge.head.frame import FrameRequest, Picture, Tensors
from edge.head.staged import run_head
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.routing.gate import Verdict
from splitmesh.tensor import Frame, TensorLimits, from_bytes, pack, require_finite
from splitmesh.tensor.spec import Array, Buffer, TensorSpec, spec_of


@dataclass(frozen=True, slots=True)
class Perceived:
    """The head's outputs and where the time went (nanoseconds since the epoch)."""

    outputs: dict[str, Array]
    exit_row: Array | None
    """Probabilities ``[1, classes]`` of the deepest exit that was reached; None without an exit."""
    exit: int
    """Its number, counted from the input; -1 without an exit."""
    verdict: Verdict | None
    """Of the gate, about that row; None without an exit."""
    packed: Frame | None
    """The features of a hard frame; None when no tail is needed."""
    rate: int | None
    """At which they are coded; None when nothing crosses or the version has no rates."""
    started_ns: int
    decoded_ns: int
    ended_ns: int
    """Of the head segment."""
    packed_ns: int
    waited_ms: float = 0.0
    """Of the head's time: for other frames' run to end."""
    complete: bool = True
    """The whole head ran: ``outputs`` has what would cross."""
    score: str = ""
    """What the verdict's ease is; empty without an exit."""
    policy_revision: int = 0
    """By which the gate was made; 0: none was heard of."""

    @property
    def head_ms(self) -> float:
        """Computing the head segment, without waiting for it."""
        return (self.ended_ns - self.begun_ns) / 1e6

    @property
    def begun_ns(self) -> int:
        """Of the head segment's run."""
        return self.decoded_ns + round(self.waited_ms * 1e6)


def perceive(
    active: ActiveModel,
    request: FrameRequest,
    *,
    max_pixels: int,
    limits: TensorLimits,
    codec: str,
    escalate: bool = False,
) -> Perceived:
    """Decode and compute one frame; one that is hard, or is to ``escalate`` in any case, is packed for a tail.

    ``codec`` packs where the version brings no coder of its own.
    """
    started_ns = time.time_ns()
    feeds = _feeds(active, request, max_pixels, limits)
    decoded_ns = time.time_ns()
    gate, revision = active.gate, active.policy_revision
    # An answer by costs need not be the largest output, which is what such a caller looks for.
    escalate = escalate or (request.outputs_needed and bool(gate.judge.rule.costs))
    run = run_head(active.session, active.manifest, gate, feeds, camera=request.camera_id, escalate=escalate)
    ended_ns = time.time_ns()
    if run.complete and active.company == 1:  # frames computed together are recorded where they are
        active.live.record(1, (ended_ns - decoded_ns) / 1e6)
    packed: Frame | None = None
    rate: int | None = None
    if active.manifest.split is not None and (run.verdict is None or not run.verdict.sure):
        packed, rate = packed_for_tail(active, run.outputs, codec)
    return Perceived(
        run.outputs,
        run.exit_row,
        run.exit,
        run.verdict,
        packed,
        rate,
        started_ns,
        decoded_ns,
        ended_ns,
        time.time_ns(),
        run.waited_ms,
        complete=run.complete,
        score="" if run.verdict is None else gate.judge.rule.score,
        policy_revision=revision,
    )


def packed_for_tail(active: ActiveModel, outputs: Mapping[str, Array], codec: str) -> tuple[Frame, int | None]:
    """What crosses of a complete head's outputs, and at which rate of the version's coder; None for a general codec."""
    if active.manifest.split is None:
        raise AssertionError("only what is split crosses")
    rate = active.rate
    tensors = [(tensor.name, outputs[tensor.name]) for tensor in active.manifest.split.wire]
    return pack(tensors, active.packing(rate, codec)), rate


def _feeds(active: ActiveModel, request: FrameRequest, max_pixels: int, limits: TensorLimits) -> dict[str, Array]:
    content, inputs = request.content, active.session.inputs
    if isinstance(content, Tensors) and content.field == "tensors":
        return _named(active, content, limits)
    field = content.field if isinstance(content, Tensors) else "image"
    if len(inputs) != 1:
        named = ", ".join(repr(spec.name) for spec in inputs)
        raise field_error(field, f"model {active.info.model!r} takes {named}: send tensors")
    expected = inputs[0]
    if isinstance(content, Picture):
        preprocess = active.manifest.preprocess
        if preprocess is None:
            raise field_error("image", f"model {active.info.model!r} declares no preprocessing; send a tensor")
        return {expected.name: preprocess.normalise(preprocess.pixels(content.data, max_pixels=max_pixels)[None])}
    ((spec, data),) = content.items
    return {expected.name: _checked(expected, spec, data, limits)}


def _named(active: ActiveModel, content: Tensors, limits: TensorLimits) -> dict[str, Array]:
    """All inputs by name: each exactly once, none missing, none unknown."""
    inputs = {spec.name: spec for spec in active.session.inputs}
    feeds: dict[str, Array] = {}
    for spec, data in content.items:
        if spec.name not in inputs:
            raise field_error(content.field, f"model {active.info.model!r} has no input {spec.name!r}")
        if spec.name in feeds:
            raise field_error(content.field, f"input {spec.name!r} is given twice")
        feeds[spec.name] = _checked(inputs[spec.name], spec, data, limits)
    if missing := [name for name in inputs if name not in feeds]:
        raise field_error(content.field, f"input {', '.join(map(repr, missing))} of {active.info.model!r} is missing")
    return feeds


def _checked(expected: TensorSpec, spec: TensorSpec, data: Buffer, limits: TensorLimits) -> Array:
    array = from_bytes(spec, data, limits)
    expected.require_match(spec_of(spec.name or expected.name, array))
    if array.shape[:1] != (1,):
        raise MeshError(Reason.TENSOR_SHAPE_MISMATCH, "a request holds one sample: the first dimension must be 1")
    require_finite(expected.name, array)
    return array
