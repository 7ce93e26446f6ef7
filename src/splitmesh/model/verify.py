"""Head + tail must equal the whole: runs both on the same inputs and compares.

Exact splits differ only by what the runtime fuses on either side of the cut; splits with quantisation or a bottleneck
differ by design, and are reported rather than refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field

import numpy as np

from splitmesh.errors import MeshError, Reason
from splitmesh.model.graph import Graph
from splitmesh.model.manifest import Verification
from splitmesh.runtime import Session, open_session
from splitmesh.tensor.spec import DTYPES, Array, TensorSpec

EXACT_TOLERANCE = 1e-4
"""Largest difference of an exact split, as a share of an output's largest magnitude: float32 sums in another order."""


def random_inputs(source: Graph | Sequence[TensorSpec], batch: int, rng: np.random.Generator) -> dict[str, Array]:
    """One feed: standard normal floats, full-range bytes, and 0 or 1 for other integers (they may be indices).

    A leading ``-1`` becomes ``batch``; MeshError MODEL_SHAPE_UNKNOWN when another dimension varies.
    """
    specs = [source.require_spec(name) for name in source.inputs] if isinstance(source, Graph) else source
    return {spec.name: _random(spec, batch, rng) for spec in specs}


def _random(spec: TensorSpec, batch: int, rng: np.random.Generator) -> Array:
    shape = tuple(batch if axis == 0 and dim == -1 else dim for axis, dim in enumerate(spec.shape))
    if -1 in shape:
        raise MeshError(
            Reason.MODEL_SHAPE_UNKNOWN, f"input {spec.name!r} has shape {list(spec.shape)}; give inputs to compare with"
        )
    dtype = DTYPES[spec.dtype]
    if dtype.kind == "f":
        return np.asarray(rng.standard_normal(shape), dtype=dtype)
    if dtype.itemsize == 1 and dtype.kind != "b":
        info = np.iinfo(spec.dtype)
        return np.asarray(rng.integers(info.min, info.max, size=shape, endpoint=True), dtype=dtype)
    return np.asarray(rng.integers(0, 2, size=shape), dtype=dtype)


def verify_split(
    whole: bytes,
    head: bytes,
    tail: bytes,
    feeds: Sequence[Mapping[str, Array]],
    tolerance: float | None = EXACT_TOLERANCE,
) -> Verification:
    """Compare on every feed (one batch each, along the first dimension).

    Raises MeshError SPLIT_NOT_EQUAL when an output differs by more than ``tolerance`` of its largest magnitude over all
    feeds, or in type, shape or not-a-number; with ``tolerance`` None differences are only reported. The errors of
    :class:`splitmesh.runtime.Session` pass through.
    """
    if not feeds:
        raise MeshError(Reason.CALIBRATION_INSUFFICIENT, "no input to compare head and tail with the whole")
    with ExitStack() as stack:
        sessions = [stack.enter_context(closing(open_session(model))) for model in (whole, head, tail)]
        compared = _compare(sessions[0], sessions[1], sessions[2], feeds)
    worst = max(compared.errors(), key=lambda entry: entry[1], default=("", 0.0))
    if tolerance is not None and worst[1] > tolerance:
        raise _not_equal(
            worst[0], f"differs by {worst[1]:.3g} of its largest magnitude, more than {tolerance:g}", f"{worst[1]:.6g}"
        )
    return Verification(
        inputs=sum(compared.batches),
        batch_sizes=tuple(sorted(set(compared.batches))),
        max_abs_error=worst[1],
        tolerance=tolerance,
        top1_agreement=compared.agreement(),
    )


@dataclass(slots=True)
class _Comparison:
    difference: dict[str, float] = field(default_factory=dict)
    magnitude: dict[str, float] = field(default_factory=dict)
    batches: list[int] = field(default_factory=list)
    agreed: int = 0
    ranked: int = 0

    def errors(self) -> list[tuple[str, float]]:
        return [(name, value and value / (self.magnitude[name] or 1.0)) for name, value in self.difference.items()]

    def agreement(self) -> float | None:
        return self.agreed / self.ranked if self.ranked else None

    def add(self, name: str, expected: Array, actual: Array) -> None:
        if (expected.dtype, expected.shape) != (actual.dtype, actual.shape):
            raise _not_equal(
                name, f"is {actual.dtype} {list(actual.shape)}, expected {expected.dtype} {list(expected.shape)}"
            )
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


def _compare(whole: Session, head: Session, tail: Session, feeds: Sequence[Mapping[str, Array]]) -> _Comparison:
    compared = _Comparison()
    for feed in feeds:
        expected = whole.run(feed)
        features = head.run(feed)
        actual = tail.run({spec.name: features[spec.name] for spec in tail.inputs})
        for name, array in expected.items():
            compared.add(name, array, actual[name])
        first = next(iter(expected))
        compared.rank(expected[first], actual[first])
        compared.batches.append(_batch_of(feed))
    return compared


def _batch_of(feed: Mapping[str, Array]) -> int:
    array = next(iter(feed.values()), None)
    return array.shape[0] if array is not None and array.ndim else 1


def _not_equal(output: str, problem: str, error: str = "") -> MeshError:
    metadata = {"output": output, **({"error": error} if error else {})}
    return MeshError(
        Reason.SPLIT_NOT_EQUAL, f"head and tail do not equal the whole: {output!r} {problem}", metadata=metadata
    )
