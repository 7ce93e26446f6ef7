"""Profiles of small graphs whose cuts agree with their operators, and every way to cut them, written down plainly."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from hypothesis import strategies as st

from splitmesh.model.profile_data import CutProfile, NodeProfile, PictureProfile, Profile, ProfileKey

FLOAT, QUANTISED = "float32+zstd", "uint8+zstd"


@dataclass(frozen=True)
class Op:
    """An operator: what it reads (-1: the picture), its times as head and as tail, its bytes on the wire, its type."""

    sources: tuple[int, ...]
    head_ms: float
    tail_ms: float
    size: int
    weights: int = 1000
    type: str = "Conv"


def heads(ops: Sequence[Op]) -> Iterator[frozenset[int]]:
    """Every head: closed under what is read, holding all that read the picture and nothing that ends the model."""
    read = {source for op in ops for source in op.sources}
    for size in range(1, len(ops)):
        for chosen in map(frozenset, itertools.combinations(range(len(ops)), size)):
            closed = all(source in chosen for index in chosen for source in ops[index].sources if source >= 0)
            pictured = all(index in chosen for index, op in enumerate(ops) if -1 in op.sources)
            if closed and pictured and chosen <= read:
                yield chosen


def crossing(ops: Sequence[Op], head: Iterable[int]) -> tuple[int, ...]:
    """Operators of the head that others read."""
    inside = set(head)
    return tuple(sorted(i for i in inside if any(i in op.sources for j, op in enumerate(ops) if j not in inside)))


def surveyed(
    ops: Sequence[Op], *, pack_ms_per_byte: float = 0.0, left_out: Iterable[frozenset[int]] = (), **changes: object
) -> Profile:
    """With every cut of the graph but those ``left_out``; one codec, packed in proportion to bytes."""
    whole_ms = math.fsum(op.head_ms for op in ops)
    cuts = []
    for head in heads(ops):
        if head in set(left_out):
            continue
        across = crossing(ops, head)
        size = sum(ops[index].size for index in across)
        head_ms = math.fsum(ops[index].head_ms for index in head)
        tail_ms = math.fsum(op.tail_ms for index, op in enumerate(ops) if index not in head)
        cuts.append(
            CutProfile(
                tensors=tuple(f"t{index}" for index in across),
                position=len(head) / len(ops),
                head_ms=head_ms,
                head_p90_ms=head_ms,
                tail_ms=tail_ms,
                tail_p90_ms=tail_ms,
                measured=True,
                head_bytes=max(1, sum(ops[index].weights for index in head)),
                raw_bytes=size,
                wire_bytes={FLOAT: size},
                encode_ms={FLOAT: pack_ms_per_byte * size},
                decode_ms={FLOAT: pack_ms_per_byte * size},
            )
        )
    read = {source for op in ops for source in op.sources}
    values: dict[str, object] = {
        "key": ProfileKey(node="test", backend="CPUExecutionProvider", threads=1),
        "whole_ms": whole_ms,
        "whole_p90_ms": whole_ms,
        "whole_bytes": max(1, sum(op.weights for op in ops)),
        "cuts": tuple(cuts),
        "nodes": tuple(
            NodeProfile(
                name=f"t{index}",
                sources=op.sources,
                head_ms=op.head_ms,
                tail_ms=op.tail_ms,
                weight_bytes=op.weights,
                wire_bytes={FLOAT: op.size} if index in read else {},
                operator=op.type,
            )
            for index, op in enumerate(ops)
        ),
        "repeats": 5,
        "samples": 4,
        "calibration": "real",
        "host": "test",
    }
    return Profile.model_validate(values | changes)


@st.composite
def graphs(draw: st.DrawFn, most: int = 6) -> list[Op]:
    """Connected graphs: each operator reads earlier ones, the first the picture."""
    ops = []
    for index in range(draw(st.integers(2, most))):
        reads = st.sets(st.integers(-1, index - 1), min_size=1, max_size=3) if index else st.just({-1})
        head_ms, tail_ms = draw(st.floats(0.1, 20)), draw(st.floats(0.1, 20))
        ops.append(Op(tuple(sorted(draw(reads))), head_ms, tail_ms, draw(st.integers(1, 100_000))))
    return ops


def picture(size: int, **changes: float) -> PictureProfile:
    """One image codec's figures."""
    return PictureProfile.model_validate({"wire_bytes": size} | changes)
