"""The converted model against the original, on random inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from splitmesh.errors import MeshError, field_error
from splitmesh.tensor.spec import Array, TensorSpec

DEFAULT_TOLERANCE = 1e-3
"""Largest difference, as a share of an output's largest magnitude: float32 in two runtimes, with room for deep models."""

ROUNDS = 4
"""Random inputs per batch size; every second one holds values of 0..1 instead of standard normal ones."""

Original = Callable[[Mapping[str, Array]], Sequence[Array]]
"""Runs the original on one feed; the outputs in the order of the ONNX file's."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far the two are apart."""

    samples: int
    largest_difference: float
    """As a share of the largest magnitude of the output in question."""
    tolerance: float


def compare(
    original: Original, onnx_file: Path, inputs: Sequence[TensorSpec], batches: Sequence[int], tolerance: float
) -> Comparison:
    """Run both on the same inputs.

    Args:
        original: see :data:`Original`.
        onnx_file: its inputs have the names of ``inputs``.
        inputs: of the original; a leading -1 takes each of ``batches``.
        batches: sizes to try; their number times :data:`ROUNDS` feeds are run.
        tolerance: see :class:`Comparison`.

    Raises MeshError FIELD_INVALID when they differ by more, in shape or in what is not finite.
    """
    # Here, so that the CLI of a gateway, which has no runtime, can name the default tolerance.
    from splitmesh.runtime import open_session
    from splitmesh.runtime.inputs import random_feed

    rng = np.random.default_rng(0)
    difference: dict[int, float] = {}
    magnitude: dict[int, float] = {}
    with closing(open_session(onnx_file.read_bytes())) as session:
        names = [spec.name for spec in session.outputs]
        for batch in batches:
            for turn in range(ROUNDS):
                feed = random_feed(inputs, batch, rng)
                if turn % 2:
                    feed = {name: _between_0_and_1(array, rng) for name, array in feed.items()}
                converted = session.run(feed)
                for at, want in enumerate(original(feed)):
                    gap = _gap(names[at], np.asarray(want), converted[names[at]])
                    difference[at] = max(difference.get(at, 0.0), gap)
                    magnitude[at] = max(magnitude.get(at, 0.0), _largest(np.asarray(want)))
    worst = max(difference, key=lambda at: difference[at] / (magnitude[at] or 1.0))
    share = difference[worst] / (magnitude[worst] or 1.0)
    if share > tolerance:
        raise _differs(names[worst], f"by {share:.3g} of its largest magnitude, more than {tolerance:g}")
    return Comparison(sum(batches) * ROUNDS, share, tolerance)


def _between_0_and_1(array: Array, rng: np.random.Generator) -> Array:
    return rng.random(array.shape).astype(array.dtype) if array.dtype.kind == "f" else array


def _gap(name: str, want: Array, got: Array) -> float:
    """Largest absolute difference of finite values."""
    if want.shape != got.shape:
        raise _differs(name, f"in shape: {list(got.shape)} instead of {list(want.shape)}")
    finite = np.isfinite(want.astype(np.float64))
    if not np.array_equal(finite, np.isfinite(got.astype(np.float64))):
        raise _differs(name, "in what is not finite")
    if not finite.any():
        raise _differs(name, "or agrees nobody knows: the original gives no finite number on random inputs")
    return float(np.abs(want.astype(np.float64) - got.astype(np.float64))[finite].max(initial=0.0))


def _largest(array: Array) -> float:
    values = np.abs(array.astype(np.float64))
    return float(values[np.isfinite(values)].max(initial=0.0))


def _differs(output: str, how: str) -> MeshError:
    return field_error("model", f"the conversion is not faithful: output {output!r} differs {how}")
