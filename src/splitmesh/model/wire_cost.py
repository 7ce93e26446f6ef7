"""How many bytes each cut puts on the wire, and how long packing them takes.

All cuts of a model are measured on the same run of the whole model with the cuts' tensors as extra outputs: sizes
depend on what is in a tensor (zeros after a ReLU), so they are never interpolated. Knows codecs and rounding, no heads
and tails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np
from onnx import ModelProto, helper

from splitmesh.model.cuts import Cut
from splitmesh.model.profile_data import FLOAT_CODEC, QUANTISED_CODEC
from splitmesh.model.ranges import Affine, RangeCollector, affine, quantise
from splitmesh.runtime import open_session
from splitmesh.tensor import codecs
from splitmesh.tensor.spec import Array, as_bytes

GROUP_BYTES = 256 * 1024 * 1024
"""Tensors held in memory at once; cuts beyond that wait for another run."""

Feed = Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class WireCost:
    """One cut, by codec: mean bytes and median milliseconds per sample."""

    bytes: dict[str, int]
    encode_ms: dict[str, float]
    decode_ms: dict[str, float]


def wire_costs(
    whole: ModelProto, cuts: Sequence[Cut], samples: Sequence[Feed], *, threads: int, clock: Callable[[], float]
) -> list[WireCost]:
    """The cost of every cut, in order. Ranges for the rounding are those of these ``samples``."""
    costs = []
    for group in _groups(cuts, len(samples)):
        with closing(open_session(tapped(whole, group).SerializeToString(), threads=threads)) as session:
            runs = [session.run(sample) for sample in samples]
        costs += [_cost([[run[name] for name in cut.tensors] for run in runs], clock) for cut in group]
    return costs


def _groups(cuts: Sequence[Cut], samples: int) -> Iterator[list[Cut]]:
    group: list[Cut] = []
    held = 0
    for cut in cuts:
        size = cut.size_bytes * samples
        if group and held + size > GROUP_BYTES:
            yield group
            group, held = [], 0
        group.append(cut)
        held += size
    if group:
        yield group


def tapped(whole: ModelProto, cuts: Iterable[Cut]) -> ModelProto:
    """The model with the tensors of these cuts as further outputs."""
    tapped = ModelProto()
    tapped.CopyFrom(whole)
    specs = {spec.name: spec for cut in cuts for spec in cut.specs}
    for entry in whole.graph.output:
        specs.pop(entry.name, None)
    for spec in specs.values():
        shape = [dim if dim >= 0 else None for dim in spec.shape]
        elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
        tapped.graph.output.append(helper.make_tensor_value_info(spec.name, elem_type, shape))
    return tapped


def _cost(runs: Sequence[Sequence[Array]], clock: Callable[[], float]) -> WireCost:
    """``runs``: per sample the tensors of one cut."""
    packed = {FLOAT_CODEC: [_plain(tensors) for tensors in runs], QUANTISED_CODEC: list(_rounded(runs))}
    cost = WireCost({}, {}, {})
    for codec, messages in packed.items():
        sizes, encoding, decoding = [], [], []
        for message in messages:
            start = clock()
            payload = codecs.encode("zstd", message)
            encoded = clock()
            codecs.decode("zstd", payload, len(message))
            decoded = clock()
            sizes.append(len(payload))
            encoding.append((encoded - start) * 1e3)
            decoding.append((decoded - encoded) * 1e3)
        cost.bytes[codec] = round(fmean(sizes))
        cost.encode_ms[codec] = median(encoding)
        cost.decode_ms[codec] = median(decoding)
    return cost


def _plain(tensors: Iterable[Array]) -> bytes:
    return b"".join(as_bytes(tensor) for tensor in tensors)


def _rounded(runs: Sequence[Sequence[Array]]) -> Iterator[bytes]:
    """The runs' messages with float tensors as the graph would round them."""
    rules: list[Affine | None] = []
    for index, tensor in enumerate(runs[0]):
        if tensor.dtype.kind != "f":
            rules.append(None)
            continue
        collector = RangeCollector(f"tensor {index} of a cut")
        for run in runs:
            collector.add(run[index])
        rules.append(affine(collector.ranges(), per_channel=True))
    for run in runs:
        yield _plain(
            tensor if rule is None else quantise(tensor, rule) for tensor, rule in zip(run, rules, strict=True)
        )
