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
from splitmesh.model.quantize import quantise_cut
from splitmesh.model.ranges import Affine, RangeCollector, Ranges, affine, quantise
from splitmesh.runtime import open_session
from splitmesh.tensor import codecs
from splitmesh.tensor.spec import DTYPES, Array, TensorSpec, as_bytes

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
        for cut in group:
            cost = _cost([[run[name] for name in cut.tensors] for run in runs], clock)
            _add_rounding(cost, cut, [{name: run[name] for name in cut.tensors} for run in runs], threads, clock)
            costs.append(cost)
    return costs


def estimated_bytes(spec: TensorSpec, nearest: tuple[Cut, WireCost] | None) -> dict[str, int]:
    """By codec, of a tensor (``spec`` of one sample) that was not measured: it packs as well as the one tensor of
    ``nearest``, or not at all when there is none.
    """
    before = {FLOAT_CODEC: spec.size_bytes, QUANTISED_CODEC: _rounded_bytes(spec.dtype, spec.size_bytes)}
    if nearest is None:
        return before
    cut, cost = nearest
    dtype = cut.specs[0].dtype
    measured = {FLOAT_CODEC: cut.size_bytes, QUANTISED_CODEC: _rounded_bytes(dtype, cut.size_bytes)}
    return {codec: max(1, round(size * cost.bytes[codec] / measured[codec])) for codec, size in before.items()}


def _rounded_bytes(dtype: str, size_bytes: int) -> int:
    """Only floats are rounded, to one byte each."""
    kind = DTYPES[dtype]
    return size_bytes // kind.itemsize if kind.kind == "f" else size_bytes


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


def _add_rounding(cost: WireCost, cut: Cut, runs: Sequence[Feed], threads: int, clock: Callable[[], float]) -> None:
    """Heads that round take longer, and so do tails that restore: what these operators take alone is added."""
    ranges: dict[str, Ranges] = {}
    for spec in cut.specs:
        if DTYPES[spec.dtype].kind == "f":
            collector = RangeCollector(spec.name)
            for run in runs:
                collector.add(run[spec.name])
            ranges[spec.name] = collector.ranges()
    if not ranges:
        return
    before, after = (_passing(cut.specs, outward) for outward in (True, False))
    rounding, restoring, _ = quantise_cut(before, after, ranges)
    messages = [{f"{name}.given": array for name, array in run.items()} for run in runs]
    rounded, took_ms = _timed(rounding, messages, threads, clock)
    cost.encode_ms[QUANTISED_CODEC] += took_ms
    cost.decode_ms[QUANTISED_CODEC] += _timed(restoring, rounded, threads, clock)[1]


def _passing(specs: Sequence[TensorSpec], outward: bool) -> ModelProto:
    """A head (``outward``) or tail that hands the cut's tensors on as they are."""
    inputs, outputs, nodes = [], [], []
    for spec in specs:
        elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
        shape = [dim if dim >= 0 else None for dim in spec.shape]
        given, made = (f"{spec.name}.given", spec.name) if outward else (spec.name, f"{spec.name}.taken")
        inputs.append(helper.make_tensor_value_info(given, elem_type, shape))
        outputs.append(helper.make_tensor_value_info(made, elem_type, shape))
        nodes.append(helper.make_node("Identity", [given], [made]))
    graph = helper.make_graph(nodes, "passing", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def _timed(
    model: ModelProto, feeds: Sequence[Feed], threads: int, clock: Callable[[], float]
) -> tuple[list[dict[str, Array]], float]:
    """Outputs, and the median milliseconds of a run; the first run is not counted."""
    times = []
    with closing(open_session(model.SerializeToString(), threads=threads)) as session:
        outputs = [session.run(feed) for feed in feeds]
        for feed in feeds:
            start = clock()
            session.run(feed)
            times.append((clock() - start) * 1e3)
    return outputs, median(times)


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
