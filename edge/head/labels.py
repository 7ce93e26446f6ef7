"""An answer's classes, the one that it names and then the probable ones, as the bytes of the contract's ``labels``.

A thousand label messages made one by one take longer than a small head's arithmetic. What stays the same of each, its number
and name, is therefore encoded once; only the score is written per answer.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from splitmesh.api.inference.v1 import inference_pb2 as pb

MOST_LABELS = 1000
"""In one answer, unless it asks for fewer."""
_SCORE_BYTES = 4


def most_probable(row: NDArray[np.float64], most: int) -> NDArray[np.intp]:
    """Indices of the ``most`` largest of ``row`` ``[classes]``, falling; equal ones in the order of their indices."""
    if most >= len(row):
        return np.argsort(-row, kind="stable")
    least = np.partition(row, len(row) - most)[len(row) - most]
    candidates = np.flatnonzero(row >= least)
    return candidates[np.argsort(-row[candidates], kind="stable")[:most]]


def add_labels(
    response: pb.InferResponse, row: NDArray[np.float64], names: tuple[str, ...], most: int, first: int | None = None
) -> None:
    """Add the probable classes to an answer without any; a class without a name gets an empty one.

    The class ``first`` stands before those that are more probable, with its own score.
    """
    order = most_probable(row, min(most or MOST_LABELS, MOST_LABELS))
    if first is not None and order[0] != first:
        order = np.concatenate([[first], order[order != first]])[: len(order)]
    scores = row[order].astype("<f4").tobytes()
    before = _before_scores(names, len(row))
    parts: list[bytes] = [b""] * (2 * len(order))
    parts[::2] = [before[index] for index in order.tolist()]
    parts[1::2] = [scores[at : at + _SCORE_BYTES] for at in range(0, len(scores), _SCORE_BYTES)]
    response.MergeFromString(b"".join(parts))


@lru_cache(maxsize=32)
def _before_scores(names: tuple[str, ...], classes: int) -> list[bytes]:
    """Of every class all bytes of its label but the score's, which are last."""
    encoded = []
    for index in range(classes):
        # A score that is not 0 is written, after the other fields: they are in the order of their numbers.
        label = pb.Label(index=index, name=names[index] if index < len(names) else "", score=1.0)
        encoded.append(pb.InferResponse(labels=[label]).SerializeToString()[:-_SCORE_BYTES])
    return encoded
