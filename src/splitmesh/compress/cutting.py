"""The steps ``split`` and ``int8-cut``: cut a version that is whole, round what crosses to 8 bits.

Knows versions and samples; the graphs are changed by ``splitmesh.model``, entropy coding is ``coding.py``'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from splitmesh.compress.coding import attach_tables
from splitmesh.compress.recipe import QuantiseCut, Split
from splitmesh.compress.work import BATCH, Context, Feeds, Samples, Work
from splitmesh.errors import MeshError, Reason
from splitmesh.model.artifacts import split_bytes
from splitmesh.model.chain import calibrate_chain, quantise_chain
from splitmesh.model.manifest import Manifest, Quantisation, SplitInfo
from splitmesh.model.ranges import Ranges
from splitmesh.model.verify import Reference, compare
from splitmesh.tensor.spec import Array

COMPARE_SAMPLES = 512
"""Samples, none of the hold-out, on which one scale per tensor is compared with one per channel."""

VERIFY_SAMPLES = 64
"""Samples on which the segments are compared with the whole, element by element."""


def apply_split(work: Work, step: Split, context: Context) -> Work:
    """The version cut at ``step.at``; head and tail equal the whole.

    Raises MeshError CUT_INVALID for a version that is split already, and what cutting and verifying raise.
    """
    if work.manifest.split is not None:
        raise MeshError(
            Reason.CUT_INVALID, "this version is split already; start from the whole version it was made from"
        )
    context.progress("cut the model", 0.0)
    manifest, artifacts = split_bytes(
        work.whole(),
        step.at,
        preprocess=work.manifest.preprocess,
        labels=work.manifest.labels,
        feeds=verified_on(context.samples),
    )
    made = manifest.model_copy(update={"task": work.manifest.task, "leakage": work.manifest.leakage})
    return Work(checked(made), {**work.artifacts, **artifacts})


def apply_quantise(work: Work, step: QuantiseCut, context: Context) -> Work:
    """The split version whose cuts cross as 8 bits; entropy coded when it has one cut, else packed by zstd.

    Raises MeshError MODEL_INCOMPLETE for a version that is not split or rounded already, CUT_INVALID when the cut holds
    no floating-point numbers, and what calibrating raises.
    """
    del step
    split = require_plain_split(work.manifest)
    context.progress("round the cut to 8 bits", 0.0)
    names = [segment.artifact for segment in split.segments()]
    made, rules = _quantise(work, context.samples)
    verification = compare(Reference(work.whole(), verified_on(context.samples)), list(made), None)
    manifest = work.manifest.model_copy(
        update={"split": split.rounded(rules).model_copy(update={"verification": verification})}
    )
    context.figures["scales"] = float(sum(len(rule.scale) for hop in rules for rule in hop))
    result = Work(checked(manifest), {**work.artifacts, **dict(zip(names, made, strict=True))})
    if len(names) > 2:
        context.remark("a chain's hops cross packed by zstd: only a version with one cut is entropy coded")
        return result
    return attach_tables(result, context)


def require_plain_split(manifest: Manifest) -> SplitInfo:
    """The split of a version that can be rounded; MODEL_INCOMPLETE when it is whole, rounded or has an exit."""
    if manifest.split is None:
        raise MeshError(Reason.MODEL_INCOMPLETE, "this version is not split; split it first")
    if any(hop.quantisation or hop.bottleneck for hop in manifest.split.hops()) or manifest.exits():
        raise MeshError(
            Reason.MODEL_INCOMPLETE, "this version is compressed already; compress the split version it was made from"
        )
    return manifest.split


def verified_on(samples: Samples) -> Feeds:
    """Inputs to compare segments with the whole on: a few, none of the hold-out."""
    return samples.feeds(samples.made_from[:VERIFY_SAMPLES])


def checked(manifest: Manifest) -> Manifest:
    """The same, read back once: ``model_copy`` checks nothing."""
    return Manifest.from_json(manifest.to_json())


def _quantise(work: Work, samples: Samples) -> tuple[list[bytes], tuple[tuple[Quantisation, ...], ...]]:
    """The segments with 8 bits between them: one scale per tensor where that costs no answer, else one per channel.

    One scale leaves more zeros, which pack better (18 to 32 % fewer bytes on a small ResNet, at the same answers).
    """
    segments, feeds = work.segments(), samples.feeds(samples.made_from)
    ranges = calibrate_chain(segments, feeds)
    fine, coarse = (_made(segments, ranges, per_channel=per_channel) for per_channel in (True, False))
    if not any(fine[1]):
        raise MeshError(Reason.CUT_INVALID, "no tensor of the cut holds floating-point numbers; nothing to round")
    if fine[1] == coarse[1]:
        return coarse
    compared: Sequence[Mapping[str, Array]] = feeds[: -(-COMPARE_SAMPLES // BATCH)]
    reference = Reference(work.whole(), compared)
    agreement = [compare(reference, made, None).top1_agreement for made, _ in (fine, coarse)]
    if agreement[0] is None or agreement[1] is None or agreement[1] < agreement[0]:
        return fine
    return coarse


def _made(
    segments: Sequence[bytes], ranges: Sequence[Mapping[str, Ranges]], *, per_channel: bool
) -> tuple[list[bytes], tuple[tuple[Quantisation, ...], ...]]:
    models, rules = quantise_chain(segments, ranges, per_channel=per_channel)
    return [model.SerializeToString(deterministic=True) for model in models], rules
