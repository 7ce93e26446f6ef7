"""The step ``bottleneck``: few channels at one cut, put into head and tail, rounded and entropy coded.

Chooses the cut where none is named, gets encoder and decoder (closed form here, trained from ``compress.train``), and
writes the version. The numbers are ``closed_form.py``'s, the graphs ``splitmesh.model.bottleneck_graph``'s, the rates
``coding.py``'s.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Literal

import numpy as np

from splitmesh.compress.closed_form import layouts
from splitmesh.compress.closed_form_code import ClosedForm, Coder, fit_closed_form
from splitmesh.compress.coding import Candidate, CutCoder, attach_tables, choose_rates
from splitmesh.compress.cutting import checked, verified_on
from splitmesh.compress.recipe import Bottleneck
from splitmesh.compress.work import Context, Work
from splitmesh.errors import MeshError, Reason
from splitmesh.model.bottleneck_graph import insert_bottleneck
from splitmesh.model.cuts import Cut, list_cuts, resolve_cut
from splitmesh.model.graph import Graph
from splitmesh.model.load import load_model
from splitmesh.model.manifest import (
    HEAD,
    TAIL,
    WHOLE,
    BottleneckInfo,
    Manifest,
    SegmentInfo,
    SplitInfo,
    TensorInfo,
)
from splitmesh.model.split import split_model
from splitmesh.model.verify import verify_chain, verify_split
from splitmesh.tensor.spec import TensorSpec

TRIED_CUTS = 6
"""At most so many are compared where none is named."""

DEEPEST = 0.9
"""Share of the work before a cut that is compared: behind it hardly anything is left for the tail."""

TRIED_SAMPLES = 128
"""For fitting and for validation, to compare cuts."""

TRIED_CHANNELS = 16

FRAME_BYTES = 200
"""What a frame takes beside its payload: below that fewer bytes save little."""

HEAD_BYTES = 0.05
"""Share of the model's work that reading and rounding a picture is taken for."""

CHANNELS = 32
"""Of a closed-form code before it is narrowed to those that are needed."""

MIXED_STEPS = (1, 4, 16)
"""Roundings that the first decoder must serve, while the rate is not known."""

SILENT = 1e-3
"""Share of places off the zero point up to which a channel says nothing."""

Method = Literal["closed-form", "trained"]

FLOATS = ("float32", "float16", "float64")


@dataclass(frozen=True, slots=True)
class Halves:
    """A model cut at one tensor, exactly."""

    cut: Cut
    position: float
    """Share of the work in the head."""
    head: bytes
    tail: bytes
    tail_macs: int

    @property
    def spec(self) -> TensorSpec:
        """Of the tensor."""
        return self.cut.specs[0]


def apply(work: Work, step: Bottleneck, context: Context) -> Work:
    """The version with a bottleneck at ``step.at``, at its own cut or, when it is whole, at the best of those offered.

    Where no cut is named, that is the one with the smallest product of what crosses (payload and frame, at the best
    rate) and the share of the work done in the head: a cut twice as deep must halve the bytes.

    Raises MeshError CUT_INVALID (several tensors, no such tensor, not floating-point numbers of rank 2 to 4),
    MODEL_INCOMPLETE (an exit stands on the cut already, or the model offers no cut), EXTRA_MISSING (trained, without
    torch), and what fitting and measuring raise.
    """
    if step.method == "trained" and find_spec("torch") is None:
        raise MeshError(
            Reason.EXTRA_MISSING,
            "a trained bottleneck needs torch: install splitmesh[train], or take method=closed-form",
            metadata={"extra": "train"},
        )
    if work.manifest.exits():
        raise MeshError(
            Reason.MODEL_INCOMPLETE, "this version has exits at its cut; start from the version it was made from"
        )
    context.progress("cut the model", 0.0)
    graph = Graph(load_model(work.whole()))
    named = _named(graph, work.manifest, step)
    halves = _halves(graph, named) if named else _best_cut(graph, work, context)
    verify_split(work.whole(), halves.head, halves.tail, verified_on(context.samples))
    if step.method == "trained":
        from splitmesh.compress.train.bottleneck import train_codes

        trained = train_codes(halves.head, halves.tail, halves.spec.name, step, context)
        coder = Coder(trained.encoder, trained.decoder, trained.scale, trained.zero_point, trained.channels)
        made = insert(work, halves, coder, step.method, context)
        return attach_tables(made, context, most=step.rates)
    return _closed_form(work, halves, step, context)


def insert(work: Work, halves: Halves, coder: Coder, method: Method, context: Context) -> Work:
    """The version cut there with this bottleneck; not entropy coded yet."""
    tensor = halves.spec.name
    head, tail, rule = insert_bottleneck(
        load_model(halves.head),
        load_model(halves.tail),
        tensor,
        coder.encoder,
        coder.decoder,
        coder.scale,
        coder.zero_point,
    )
    segments = {HEAD: head.SerializeToString(deterministic=True), TAIL: tail.SerializeToString(deterministic=True)}
    verification = verify_chain(work.whole(), list(segments.values()), verified_on(context.samples), None)
    old = work.manifest
    cut = TensorInfo.of(halves.spec)
    wire = TensorInfo.of(Graph(load_model(segments[HEAD])).require_spec(rule.wire_tensor))
    split = SplitInfo(
        cut=(cut,),
        wire=(wire,),
        quantisation=(rule,),
        bottleneck=BottleneckInfo(method=method, tensor=tensor, channels=coder.channels),
        head=SegmentInfo(artifact=HEAD, inputs=old.whole.inputs, outputs=(wire,)),
        tail=SegmentInfo(artifact=TAIL, inputs=(wire,), outputs=old.whole.outputs),
        verification=verification,
    )
    manifest = Manifest(
        task=old.task,
        labels=old.labels,
        preprocess=old.preprocess,
        whole=old.whole.model_copy(update={"artifact": WHOLE}),
        split=split,
        leakage=tuple(entry for entry in old.leakage if entry.codec != "bottleneck"),
    )
    return Work(checked(manifest), {WHOLE: work.whole(), **segments})


def _named(graph: Graph, manifest: Manifest, step: Bottleneck) -> str:
    """The tensor to cut at; empty: to be chosen."""
    if step.at:
        return step.at[0]
    split = manifest.split
    if split is None:
        return ""
    if split.middle or len(split.cut) > 1:
        what = "is cut into a chain" if split.middle else f"is cut at {len(split.cut)} tensors"
        near = ", ".join(repr(cut.tensors[0]) for cut in _single_cuts(graph)[:8]) or "none"
        raise MeshError(
            Reason.CUT_INVALID,
            f"this version {what}, a bottleneck takes one tensor between two segments; name it, for example {near}",
            metadata={"near": near},
        )
    return split.cut[0].name


def _halves(graph: Graph, tensor: str) -> Halves:
    cut = resolve_cut(graph, [tensor])
    if cut.specs[0].dtype not in FLOATS:
        raise MeshError(
            Reason.CUT_INVALID, f"{tensor!r} holds {cut.specs[0].dtype}; a bottleneck takes floating-point numbers"
        )
    parts = split_model(graph, cut)
    return Halves(
        cut,
        cut.position,
        parts.head.SerializeToString(deterministic=True),
        parts.tail.SerializeToString(deterministic=True),
        round(sum(graph.macs) * (1 - cut.position)),
    )


def _single_cuts(graph: Graph) -> list[Cut]:
    """Of one floating-point tensor; those of places or tokens, or where there are none, of flat features."""
    cuts = [cut for cut in list_cuts(graph, max_tensors=1) if cut.specs[0].dtype in FLOATS]
    spread = [
        cut
        for cut in cuts
        if len(cut.specs[0].shape) == 3 or (len(cut.specs[0].shape) == 4 and max(cut.specs[0].shape[2:]) != 1)
    ]
    flat = [cut for cut in cuts if len(cut.specs[0].shape) == 2]
    return spread or flat


def _best_cut(graph: Graph, work: Work, context: Context) -> Halves:
    """The one with the least bytes times work in the head, by closed form on some samples."""
    cuts = [cut for cut in _single_cuts(graph) if cut.position <= DEEPEST] or _single_cuts(graph)
    if not cuts:
        raise MeshError(
            Reason.MODEL_INCOMPLETE,
            "the model offers no cut at one tensor of floating-point numbers; name one with at=",
        )
    narrow: dict[int, Cut] = {}
    for cut in cuts:
        place = int(cut.position * TRIED_CUTS / DEEPEST)
        if place not in narrow or cut.size_bytes <= narrow[place].size_bytes:
            narrow[place] = cut
    samples = context.samples
    fewer = replace(samples, fit=samples.fit[:TRIED_SAMPLES], validation=samples.validation[:TRIED_SAMPLES])
    quick = replace(context, samples=fewer, remarks=[], figures={}, progress=lambda _step, _share: None)
    found: list[tuple[float, float, Halves]] = []
    for number, cut in enumerate(narrow.values()):
        context.progress(f"try the cut at {cut.tensors[0]}", 0.3 * number / len(narrow))
        try:
            halves = _halves(graph, cut.tensors[0])
            tried = _fitted(work, halves, quick, channels=TRIED_CHANNELS, quickly=True)
            tried.code.close()
            best = tried.best
        except MeshError as error:
            if error.reason not in (Reason.CUT_INVALID, Reason.CALIBRATION_INSUFFICIENT, Reason.MODEL_SHAPE_UNKNOWN):
                raise
            continue
        found.append(((best.size + FRAME_BYTES) * (halves.position + HEAD_BYTES), best.size, halves))
    if not found:
        raise MeshError(Reason.MODEL_INCOMPLETE, "none of the cuts offered takes a bottleneck; name one with at=")
    _, size, halves = min(found, key=lambda entry: entry[0])
    context.remark(
        f"cut at {halves.spec.name!r}: of {len(found)} cuts tried it has the least bytes times work before it "
        f"(about {size:.0f} bytes, {halves.position:.0%} of the work in the head)"
    )
    return halves


@dataclass(frozen=True, slots=True, eq=False)
class _Fitted:
    """A closed form and the rate that would be its best."""

    code: ClosedForm
    best: Candidate
    speaking: int
    """Channels that say something at its rate."""
    block: int


def _closed_form(work: Work, halves: Halves, step: Bottleneck, context: Context) -> Work:
    context.progress("fit the closed form", 0.3)
    fitted = _fitted(work, halves, context, channels=step.channels or CHANNELS)
    with closing(fitted.code):
        # Once more for what was chosen: no channel that does not cross, a way back that makes up for this rounding.
        coder = fitted.code.coder(step.channels or fitted.speaking, (fitted.best.pair[1],))
    made = insert(work, halves, coder, "closed-form", context)
    context.remark(
        f"{coder.channels} channels of {halves.spec.name!r}, blocks of {fitted.block} x {fitted.block} places, by closed form"
    )
    context.figures.update(channels=float(coder.channels), block=float(fitted.block))
    return attach_tables(made, context, most=step.rates)


def _speaking(cut: CutCoder, pair: tuple[int, int]) -> int:
    """Channels up to the last that is off its zero point at this rate in one of a thousand places."""
    (codes,) = cut.codec(cut.tables([pair])).coarse(cut.fit, 0)
    rows = np.moveaxis(codes, cut.axes[0], 0).reshape(codes.shape[cut.axes[0]], -1)
    says = (rows != cut.zero_points[0][:, None]).mean(axis=1) > SILENT
    return int(np.flatnonzero(says).max(initial=0)) + 1


def _fitted(work: Work, halves: Halves, context: Context, *, channels: int, quickly: bool = False) -> _Fitted:
    """The closed form of the largest blocks that the samples allow; ``quickly``: plain principal components."""
    layout = layouts(halves.spec.shape, len(context.samples.fit))[0]
    code = fit_closed_form(
        halves.head,
        halves.tail,
        halves.spec.name,
        layout,
        context,
        channels=channels,
        tail_macs=None if quickly else halves.tail_macs,
        class_output=work.manifest.class_output,
    )
    try:
        made = insert(work, halves, code.coder(channels, MIXED_STEPS), "closed-form", context)
        with closing(CutCoder(made, context)) as cut:
            best = choose_rates(cut, context, 1, all_channels=True)[0]
            return _Fitted(code, best, _speaking(cut, best.pair), layout.block)
    except BaseException:
        code.close()
        raise
