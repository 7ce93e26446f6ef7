"""Head + tail must equal the whole: runs both on the same inputs and compares.

Exact splits differ only by what the runtime fuses on either side of the cut; splits with quantisation or a bottleneck
differ by design, and are reported rather than refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto

from splitmesh.errors import MeshError, Reason
from splitmesh.model.graph import Graph
from splitmesh.model.manifest import Verification
from splitmesh.model.walk import dense_tensors, every_node
from splitmesh.runtime import Session, open_session
from splitmesh.runtime.inputs import random_feed
from splitmesh.tensor.spec import Array, TensorSpec

EXACT_TOLERANCE = 1e-4
"""Largest difference of an exact split, as a share of an output's largest magnitude: float32 sums in another order."""

ROUNDED_TOLERANCE = 0.2
"""The same for a model that rounds inside, as far as the runtime's fusing is the cause; an 8-bit ViT with random weights
differs by up to 0.07 (benchmarks/split_coverage.py)."""

HALF_TOLERANCE = 1e-2
"""The same for a model that computes in 16-bit floats, of 11 bits each: the runtime computes some of it in 32 bits, and a
tensor that crosses is rounded once more."""

_ROUNDING = """
    DynamicQuantizeLinear QGemm QLinearAdd QLinearAveragePool QLinearConcat QLinearConv QLinearGlobalAveragePool
    QLinearLeakyRelu QLinearMatMul QLinearMul QLinearSigmoid QLinearSoftmax QuantizeLinear
"""

ROUNDING = frozenset(_ROUNDING.split())
"""Operators that round to 8 bits."""

MAX_RUN_S = 120.0
"""A single run of a model being compared; a ``Loop`` may have no end."""


def random_inputs(source: Graph | Sequence[TensorSpec], batch: int, rng: np.random.Generator) -> dict[str, Array]:
    """One feed: standard normal floats, full-range bytes, and 0 or 1 for other integers (they may be indices).

    A leading ``-1`` becomes ``batch``; MeshError MODEL_SHAPE_UNKNOWN when another dimension varies.
    """
    specs = [source.require_spec(name) for name in source.inputs] if isinstance(source, Graph) else source
    return random_feed(specs, batch, rng)


def verify_split(
    whole: bytes,
    head: bytes,
    tail: bytes,
    feeds: Sequence[Mapping[str, Array]],
    tolerance: float | None = EXACT_TOLERANCE,
) -> Verification:
    """As :func:`verify_chain`, of a model cut in two."""
    return verify_chain(whole, (head, tail), feeds, tolerance)


def verify_chain(
    whole: bytes,
    segments: Sequence[bytes],
    feeds: Sequence[Mapping[str, Array]],
    tolerance: float | None = EXACT_TOLERANCE,
) -> Verification:
    """As :func:`compare`, of one split only."""
    return compare(Reference(whole, feeds), segments, tolerance)


class Reference:
    """What a whole model answers on some feeds (one batch each, along the first dimension), computed once."""

    def __init__(self, whole: bytes, feeds: Sequence[Mapping[str, Array]]) -> None:
        """Raises MeshError CALIBRATION_INSUFFICIENT without a feed."""
        if not feeds:
            raise MeshError(Reason.CALIBRATION_INSUFFICIENT, "no input to compare head and tail with the whole")
        self.feeds = feeds
        self._whole = whole
        self._outputs: dict[bool, list[dict[str, Array]]] = {}

    def outputs(self, *, optimise: bool) -> list[dict[str, Array]]:
        """The answers, feed by feed, as the runtime gives them with or without fusing."""
        if optimise not in self._outputs:
            with closing(_open(self._whole, optimise)) as session:
                self._outputs[optimise] = [session.run(feed) for feed in self.feeds]
        return self._outputs[optimise]

    def rounds(self) -> bool:
        """Whether the model rounds to few bits inside."""
        model = onnx.load_model_from_string(self._whole)
        return any(node.op_type in ROUNDING for node in every_node(model))

    def halves(self) -> bool:
        """Whether the model computes in 16-bit floats."""
        model = onnx.load_model_from_string(self._whole)
        return any(tensor.data_type == TensorProto.FLOAT16 for tensor in dense_tensors(model))


def compare(reference: Reference, segments: Sequence[bytes], tolerance: float | None = EXACT_TOLERANCE) -> Verification:
    """Compare the segments, one after the other, with the whole.

    Where a model rounds inside and the runtime fuses, a difference in the last bit becomes one step of the rounding. So
    such a model may differ by ``ROUNDED_TOLERANCE``, which the result then names, if it does not differ by more than
    ``tolerance`` when nothing is fused. One that computes in 16-bit floats may differ by ``HALF_TOLERANCE``.

    Raises MeshError SPLIT_NOT_EQUAL when an output differs by more than ``tolerance`` of its largest magnitude over all
    feeds, when integers differ at all, or in type, shape or not-a-number; with ``tolerance`` None differences of values
    are only reported. The errors of :class:`splitmesh.runtime.Session` pass through; a run is stopped after
    ``MAX_RUN_S``.
    """
    compared = _compare(reference, segments, optimise=True)
    if tolerance is not None and compared.exceeds(tolerance) and reference.rounds():
        _compare(reference, segments, optimise=False).require(tolerance)
        tolerance = ROUNDED_TOLERANCE
        compared.unequal.clear()
    elif tolerance is not None and compared.worst()[1] > tolerance and reference.halves():
        tolerance = max(tolerance, HALF_TOLERANCE)
    if tolerance is not None:
        compared.require(tolerance)
    return Verification(
        inputs=sum(compared.batches),
        batch_sizes=tuple(sorted(set(compared.batches))),
        max_abs_error=compared.worst()[1],
        tolerance=tolerance,
        top1_agreement=compared.agreement(),
    )


@dataclass(slots=True)
class _Comparison:
    difference: dict[str, float] = field(default_factory=dict)
    magnitude: dict[str, float] = field(default_factory=dict)
    unequal: dict[str, int] = field(default_factory=dict)
    """Integers that differ, by output."""
    batches: list[int] = field(default_factory=list)
    agreed: int = 0
    ranked: int = 0

    def worst(self) -> tuple[str, float]:
        """The output with the largest difference, as a share of its largest magnitude."""
        errors = [(name, value and value / (self.magnitude[name] or 1.0)) for name, value in self.difference.items()]
        return max(errors, key=lambda entry: entry[1], default=("", 0.0))

    def exceeds(self, tolerance: float) -> bool:
        return bool(self.unequal) or self.worst()[1] > tolerance

    def require(self, tolerance: float) -> None:
        name, error = self.worst()
        if error > tolerance:
            problem = f"differs by {error:.3g} of its largest magnitude, more than {tolerance:g}"
            raise _not_equal(name, problem, f"{error:.6g}")
        for name, count in self.unequal.items():
            raise _not_equal(name, f"differs in {count} of its integers", f"{error:.6g}")

    def agreement(self) -> float | None:
        return self.agreed / self.ranked if self.ranked else None

    def add(self, name: str, expected: Array, actual: Array) -> None:
        if (expected.dtype, expected.shape) != (actual.dtype, actual.shape):
            raise _not_equal(
                name, f"is {actual.dtype} {list(actual.shape)}, expected {expected.dtype} {list(expected.shape)}"
            )
        if expected.dtype.kind != "f" and (count := int((expected != actual).sum())):
            self.unequal[name] = self.unequal.get(name, 0) + count
        want, got = expected.astype(np.float64), actual.astype(np.float64)
        finite = np.isfinite(want)
        if not np.array_equal(want[~finite], got[~finite], equal_nan=True) or not np.isfinite(got[finite]).all():
            raise _not_equal(name, "is not finite at other places")
        difference = np.abs(want - got, where=finite, out=np.zeros_like(want)).max(initial=0.0)
        self.difference[name] = max(self.difference.get(name, 0.0), float(difference))
        magnitude = float(np.abs(want[finite]).max(initial=0.0))
        self.magnitude[name] = max(self.magnitude.get(name, 0.0), magnitude)

    def rank(self, expected: Array, actual: Array) -> None:
        """Count equal winners when the output is ``[batch, classes]``."""
        if expected.ndim == 2 and expected.shape[1] > 1:
            self.agreed += int((expected.argmax(axis=1) == actual.argmax(axis=1)).sum())
            self.ranked += len(expected)


def run_chain(segments: Iterable[Session], feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Outputs of the last segment; each takes by name what it needs of the outputs of the one before."""
    tensors = dict(feeds)
    for segment in segments:
        tensors = segment.run({spec.name: tensors[spec.name] for spec in segment.inputs})
    return tensors


def run_all(segments: Iterable[Session], feeds: Mapping[str, Array]) -> dict[str, Array]:
    """As :func:`run_chain`, with what the segments before the last gave beside what they hand on (an exit's answer)."""
    tensors, given = dict(feeds), dict[str, Array]()
    for segment in segments:
        tensors = segment.run({spec.name: tensors[spec.name] for spec in segment.inputs})
        given |= tensors
    return given


def _compare(reference: Reference, segments: Sequence[bytes], *, optimise: bool) -> _Comparison:
    compared = _Comparison()
    answers = reference.outputs(optimise=optimise)
    with ExitStack() as stack:
        sessions = [stack.enter_context(closing(_open(model, optimise))) for model in segments]
        for feed, expected in zip(reference.feeds, answers, strict=True):
            actual = run_all(sessions, feed)
            for name, array in expected.items():
                compared.add(name, array, actual[name])
            first = next(iter(expected))
            compared.rank(expected[first], actual[first])
            compared.batches.append(_batch_of(feed))
    return compared


def _open(model: bytes, optimise: bool) -> Session:
    return open_session(model, max_run_s=MAX_RUN_S, optimise=optimise)


def _batch_of(feed: Mapping[str, Array]) -> int:
    array = next(iter(feed.values()), None)
    return array.shape[0] if array is not None and array.ndim else 1


def _not_equal(output: str, problem: str, error: str = "") -> MeshError:
    metadata = {"output": output, **({"error": error} if error else {})}
    return MeshError(
        Reason.SPLIT_NOT_EQUAL, f"head and tail do not equal the whole: {output!r} {problem}", metadata=metadata
    )
