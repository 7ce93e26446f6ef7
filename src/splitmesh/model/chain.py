"""Cuts a model at several places: a chain of segments, each a complete model, one running after the other.

Built from the two-way split: the whole is cut at the last place, its head at the one before, and so on. A tensor of an
early cut that only a late segment reads is part of every cut between, so the segments there take it and give it
unchanged. Knows graphs and bytes; where each segment runs is the manifest's reader's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import pairwise

import onnx

from splitmesh.errors import MeshError, Reason
from splitmesh.model.cuts import Cut, resolve_cut
from splitmesh.model.graph import Graph
from splitmesh.model.load import load_model
from splitmesh.model.manifest import HEAD, TAIL, Quantisation, middle_name
from splitmesh.model.partition import ancestors
from splitmesh.model.quantize import calibrate, quantise_cut
from splitmesh.model.ranges import Ranges
from splitmesh.model.split import split_model
from splitmesh.model.verify import run_chain
from splitmesh.runtime import Session, open_session
from splitmesh.tensor.spec import Array


@dataclass(frozen=True, slots=True)
class Chain:
    """Segments in order and the cuts between them: ``cuts[k]`` is what segment k gives and segment k + 1 takes."""

    segments: tuple[onnx.ModelProto, ...]
    cuts: tuple[Cut, ...]

    def artifacts(self) -> dict[str, bytes]:
        """Every segment's file by its name, in order."""
        names = segment_names(len(self.segments))
        return {
            name: segment.SerializeToString(deterministic=True)
            for name, segment in zip(names, self.segments, strict=True)
        }


def segment_names(count: int) -> list[str]:
    """Artefact names of a chain of so many segments (2 or more), in order."""
    return [HEAD, *(middle_name(segment) for segment in range(1, count - 1)), TAIL]


def split_chain(graph: Graph, at: Sequence[Sequence[str]]) -> Chain:
    """The segments between the cuts ``at``, which are named from the input to the output.

    Raises MeshError CUT_INVALID when one is not a cut of this model, or does not lie behind the one before it;
    MODEL_SHAPE_UNKNOWN as a split does.
    """
    if not at:
        raise MeshError(Reason.CUT_INVALID, "cut refused: no cut named")
    cuts = tuple(resolve_cut(graph, names) for names in at)
    for number, (earlier, later) in enumerate(pairwise(cuts), start=2):
        _require_order(graph, earlier, later, number)
    behind: list[onnx.ModelProto] = []
    rest = graph
    for cut in reversed(cuts):
        split = split_model(rest, cut)
        behind.append(split.tail)
        rest = Graph(split.head)
    return Chain((rest.model, *reversed(behind)), cuts)


def _require_order(graph: Graph, earlier: Cut, later: Cut, number: int) -> None:
    before, after = ancestors(graph, earlier.tensors), ancestors(graph, later.tensors)
    if before < after:
        return
    names = ", ".join(repr(name) for name in later.tensors)
    if before == after:
        problem = f"is at the same place as cut {number - 1}: nothing would run between them"
    else:
        problem = f"does not lie behind cut {number - 1}; name cuts from the input to the output"
    raise MeshError(Reason.CUT_INVALID, f"cut refused: cut {number}, {names}, {problem}", metadata={"cut": str(number)})


def calibrate_chain(segments: Sequence[bytes], feeds: Sequence[Mapping[str, Array]]) -> tuple[dict[str, Ranges], ...]:
    """The ranges of what crosses at every hop, as :func:`~splitmesh.model.quantize.calibrate` gives them.

    Args:
        segments: a chain, not quantised.
        feeds: inputs of the first segment; read once per hop, one at a time.
    """
    ranges = []
    with ExitStack() as stack:
        before: list[Session] = []
        for segment in segments[:-1]:
            ranges.append(calibrate(segment, _fed(before, feeds)))
            before.append(stack.enter_context(closing(open_session(segment))))
    return tuple(ranges)


def quantise_chain(
    segments: Sequence[bytes], ranges: Sequence[Mapping[str, Ranges]], *, per_channel: bool = True
) -> tuple[list[onnx.ModelProto], tuple[tuple[Quantisation, ...], ...]]:
    """Copies of the segments between which the float tensors cross as uint8, and how, one entry per hop.

    A chain with a middle has one scale per tensor whatever ``per_channel`` says: what lies directly between two rounded
    hops is fused by the runtime into integer kernels, some of which fail on one scale per channel.

    Raises what :func:`~splitmesh.model.quantize.quantise_cut` raises.
    """
    models = [load_model(segment) for segment in segments]
    per_channel = per_channel and len(models) == 2
    rules = []
    for hop, of_hop in enumerate(ranges):
        models[hop], models[hop + 1], made = quantise_cut(models[hop], models[hop + 1], of_hop, per_channel=per_channel)
        rules.append(made)
    return models, tuple(rules)


def _fed(segments: Sequence[Session], feeds: Iterable[Mapping[str, Array]]) -> Iterator[Mapping[str, Array]]:
    for feed in feeds:
        yield run_chain(segments, feed) if segments else feed
