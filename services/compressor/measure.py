"""Measures a compressed split on samples it was not made from: bytes on the wire, agreement of tail and exit. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitmesh.model.classes import as_probabilities
from splitmesh.model.gate import confidence
from splitmesh.model.verify import run_chain
from splitmesh.runtime import open_session
from splitmesh.tensor import codecs
from splitmesh.tensor.spec import Array, as_bytes

WIRE_CODEC = "zstd"


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """Of all samples together."""

    samples: int
    wire_bytes_before: float
    """Mean of one sample."""
    wire_bytes_after: float
    """Mean of one sample."""
    tail_agreement: float | None
    """None for a model without classes."""
    exit_agreement: float | None
    """None without an exit."""
    confidences: NDArray[np.float64]
    """``[samples]``, the exit's; empty without one."""
    agrees: NDArray[np.bool_]
    """``[samples]``: the exit names the whole model's class; empty without one."""


def measure(
    whole: bytes,
    segments: Sequence[bytes],
    plain_head: bytes,
    feeds: Iterable[Mapping[str, Array]],
    *,
    class_output: str,
    exit_output: str,
) -> Measured:
    """Run everything on ``feeds``.

    Args:
        whole: the model.
        segments: the compressed ones, in order; bytes on the wire are those that leave the first.
        plain_head: the head before the recipe.
        feeds: batches of inputs; at least one.
        class_output: the whole model's output with a score per class; empty: none.
        exit_output: the head's output with the exit's probabilities; empty: none.
    """
    before: list[int] = []
    after: list[int] = []
    tail_agrees: list[NDArray[np.bool_]] = []
    exit_agrees: list[NDArray[np.bool_]] = []
    confidences: list[NDArray[np.float64]] = []
    with ExitStack() as stack:
        model, plain, head, *later = (
            stack.enter_context(closing(open_session(content))) for content in (whole, plain_head, *segments)
        )
        wire = [spec.name for spec in later[0].inputs]
        for feed in feeds:
            features, plain_features = head.run(feed), plain.run(feed)
            before += _wire_bytes([plain_features[spec.name] for spec in plain.outputs])
            after += _wire_bytes([features[name] for name in wire])
            if not class_output:
                continue
            expected = as_probabilities(model.run(feed)[class_output]).argmax(axis=1)
            answered = as_probabilities(run_chain(later, features)[class_output]).argmax(axis=1)
            tail_agrees.append(answered == expected)
            if exit_output:
                confidences.append(confidence(features[exit_output]))
                exit_agrees.append(features[exit_output].argmax(axis=1) == expected)
    agrees = _joined(exit_agrees, np.bool_)
    return Measured(
        samples=len(after),
        wire_bytes_before=float(np.mean(before)),
        wire_bytes_after=float(np.mean(after)),
        tail_agreement=float(np.concatenate(tail_agrees).mean()) if tail_agrees else None,
        exit_agreement=float(agrees.mean()) if exit_agrees else None,
        confidences=np.concatenate(confidences) if confidences else np.empty(0),
        agrees=agrees,
    )


def _joined(parts: Sequence[NDArray[np.bool_]], dtype: type[np.bool_]) -> NDArray[np.bool_]:
    return np.concatenate(parts) if parts else np.empty(0, dtype=dtype)


def _wire_bytes(tensors: Sequence[Array]) -> list[int]:
    """Per sample, as a frame carries it: the tensors one after the other, packed together."""
    return [
        len(codecs.encode(WIRE_CODEC, b"".join(bytes(as_bytes(array[row : row + 1])) for array in tensors)))
        for row in range(len(tensors[0]))
    ]
