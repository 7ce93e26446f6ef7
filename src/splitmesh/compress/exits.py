"""Exits for a split model: one at the cut, and one at each tensor named before it, with the head in stages.

Taught by the original whole model's answers, so that what an earlier step of the recipe lost is not taught on. Weights
come from the fit samples, penalty and temperature from the validation samples, every figure from the hold-out. For a
detector the exit learns one thing: whether anything was found; only "nothing" can be answered by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from splitmesh.compress.exit_answers import (
    ExitAnswers,
    batches,
    exit_answers,
    exit_rows,
    pooled_features,
    require_output,
    target_probabilities,
)
from splitmesh.compress.exit_scores import outcomes_of
from splitmesh.compress.recipe import Exits
from splitmesh.compress.work import Context, Samples, Work
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.model.artifacts import tensor_infos
from splitmesh.model.cuts import Cut
from splitmesh.model.edit import Names, value_info
from splitmesh.model.exit_graph import EXIT_OUTPUT, FEATURES_OUTPUT, LOGITS_OUTPUT, attach_exit
from splitmesh.model.exits import FittedExit, choose_feature, fit_exit
from splitmesh.model.graph import Graph
from splitmesh.model.load import load_model
from splitmesh.model.manifest import (
    DEFERRAL,
    OUTCOMES,
    UNUSUAL,
    ExitInfo,
    Finding,
    Manifest,
    SegmentInfo,
    SplitInfo,
    stage_name,
)
from splitmesh.model.pooling import choose_grid
from splitmesh.model.stages import cut_stages, verify_stages
from splitmesh.model.verify import verify_chain
from splitmesh.tensor.spec import TensorSpec

VERIFY_SAMPLES = 64
"""Of the hold-out, on which the stages are compared with the head, element by element."""


@dataclass(frozen=True, slots=True)
class _Site:
    """Where an exit sits, and the names of what it gives."""

    feature: TensorSpec
    output: str
    logits: str
    features: str = ""
    """Only at the cut: what decides about a sample that got so far may read more."""


def apply(work: Work, step: Exits, context: Context) -> Work:
    """The version with its exits.

    Raises MeshError MODEL_INCOMPLETE (not split, exits already there, no classes and no ``found_output``), FIELD_INVALID
    (``found_output`` of a model that names classes, or unknown), CUT_INVALID (a tensor that does not divide the head, or no
    tensor an exit can read), CALIBRATION_INSUFFICIENT (the original gives the fit samples one answer only),
    SPLIT_NOT_EQUAL (the stages do not give what the head gives) and those of the model's modules.
    """
    split, finding = _require_fit(work.manifest, step, context)
    head = load_model(work.artifacts[split.head.artifact])
    chain = cut_stages(head, step.at) if step.at else None
    sites = _sites(head, split, chain.cuts if chain else ())
    samples = context.samples
    fitted, targets, pooled = _fit(head, sites, finding, context)
    context.progress("write the exits into the head", 0.65)
    with_exits, stages = head, list(chain.segments) if chain else []
    for number, (site, exit_) in enumerate(zip(sites, fitted, strict=True)):
        names = {"logits": site.logits, "features": site.features}
        with_exits = attach_exit(with_exits, site.feature.name, exit_, site.output, **names)
        if stages:
            stages[number] = attach_exit(stages[number], site.feature.name, exit_, site.output, **names)
    content, pieces = _bytes(with_exits), [_bytes(stage) for stage in stages]
    _verify(work.artifacts[split.head.artifact], content, pieces, samples)
    context.progress("ask the exits about samples they were not fitted to", 0.8)
    rows = np.concatenate([samples.validation, samples.holdout])
    outputs = [name for site in sites for name in (site.output, site.logits)]
    seen = exit_rows(pieces or [content], outputs, samples.calibration, rows, threads=context.threads)
    held = slice(len(samples.validation), None)
    answers = exit_answers([seen[site.output][held] for site in sites], targets[samples.holdout], finding)
    context.progress("fit what tells hard samples", 0.9)
    further, outcomes = outcomes_of(
        [seen[site.output] for site in sites],
        [seen[site.logits] for site in sites],
        pooled,
        targets.argmax(axis=1),
        samples,
        finding=finding is not None,
        names=work.manifest.labels,
    )
    context.figures["deferral"] = float(DEFERRAL in further)
    context.figures["unusual"] = float(UNUSUAL in further)
    for site, exit_, same in zip(sites, fitted, answers.same.T, strict=True):
        context.figures[f"{site.output}_agreement"] = float(same.mean())
        context.figures[f"{site.output}_features"] = len(exit_.mean)
    stage_names = [stage_name(number) for number in range(1, len(pieces) + 1)]
    return Work(
        _manifest(
            work.manifest,
            split,
            sites,
            fitted,
            answers,
            finding,
            with_exits,
            dict(zip(stage_names, stages, strict=True)),
        ),
        {
            **work.artifacts,
            split.head.artifact: content,
            **dict(zip(stage_names, pieces, strict=True)),
            **further,
            OUTCOMES: outcomes.to_bytes(),
        },
    )


def _require_fit(manifest: Manifest, step: Exits, context: Context) -> tuple[SplitInfo, Finding | None]:
    if manifest.split is None:
        raise MeshError(Reason.MODEL_INCOMPLETE, "exits sit on a head's features; split the version first")
    if manifest.exit is not None:
        raise MeshError(
            Reason.MODEL_INCOMPLETE, "this version has exits already; start from the version it was made from"
        )
    if not step.found_output:
        if not manifest.labels:
            raise MeshError(
                Reason.MODEL_INCOMPLETE,
                "an exit needs a model that names classes, or a detector's found_output; this one has no labels",
            )
        return manifest.split, None
    if manifest.labels:
        raise field_error(
            "recipe.exits.found_output", "is for detectors; this model names classes, its exits learn them"
        )
    finding = Finding(output=step.found_output, min_score=step.found_score)
    require_output([info.spec() for info in context.original_manifest.whole.outputs], finding)
    return manifest.split, finding


def _sites(head: ModelProto, split: SplitInfo, cuts: Sequence[Cut]) -> list[_Site]:
    """From the input on; the last is the cut's."""
    names = Names(head)
    earlier = [
        _Site(choose_feature(cut.specs), names.fresh(f"exit_{k}_probabilities"), names.fresh(f"exit_{k}_logits"))
        for k, cut in enumerate(cuts, 1)
    ]
    last = _Site(
        choose_feature([info.spec() for info in split.cut]),
        EXIT_OUTPUT,
        names.fresh(LOGITS_OUTPUT),
        names.fresh(FEATURES_OUTPUT),
    )
    return [*earlier, last]


def _fit(
    head: ModelProto, sites: Sequence[_Site], finding: Finding | None, context: Context
) -> tuple[list[FittedExit], NDArray[np.float64], NDArray[np.float64]]:
    """The exits, the original's answers to every sample, and the features that the exit at the cut reads of each."""
    samples = context.samples
    everything = samples.calibration.samples
    grids = [choose_grid(site.feature, everything) for site in sites]
    context.progress("collect features for the exits", 0.0)
    names = [site.feature.name for site in sites]
    features = pooled_features(
        _bytes(_exposing(head, names)), names, grids, samples.calibration, threads=context.threads
    )
    context.progress("ask the original model", 0.3)
    targets = target_probabilities(
        context.original,
        context.original_manifest,
        samples.calibration,
        np.arange(everything),
        finding,
        threads=context.threads,
    )
    _require_both(targets[samples.fit], finding)
    parts = samples.fit, samples.validation, samples.holdout
    fitted = []
    for number, (pooled, grid) in enumerate(zip(features, grids, strict=True)):
        context.progress("fit the exits", 0.5 + 0.2 * number / len(sites))
        fitted.append(fit_exit(pooled, targets, grid=grid, parts=parts))
    return fitted, targets, features[-1]


def _require_both(targets: NDArray[np.float64], finding: Finding | None) -> None:
    found = int(targets.argmax(axis=1).sum())
    if finding is not None and found in (0, len(targets)):
        which = "in none" if found == 0 else "in each"
        raise MeshError(
            Reason.CALIBRATION_INSUFFICIENT,
            f"the model finds something {which} of the {len(targets)} samples of the fit (output {finding.output!r}, score "
            f"from {finding.min_score:g}): an exit cannot learn what the other case looks like",
        )


def _exposing(head: ModelProto, tensors: Sequence[str]) -> ModelProto:
    """The head with these tensors as outputs too."""
    result = ModelProto()
    result.CopyFrom(head)
    present = {entry.name for entry in head.graph.output}
    result.graph.output.extend(value_info(head, name) for name in dict.fromkeys(tensors) if name not in present)
    return result


def _verify(before: bytes, after: bytes, stages: Sequence[bytes], samples: Samples) -> None:
    feeds = [feed for feed, _ in batches(samples.calibration, samples.holdout[:VERIFY_SAMPLES])]
    verify_chain(before, [after], feeds)
    if stages:
        verify_stages(after, stages, feeds)


def _manifest(
    manifest: Manifest,
    split: SplitInfo,
    sites: Sequence[_Site],
    fitted: Sequence[FittedExit],
    answers: ExitAnswers,
    finding: Finding | None,
    head: ModelProto,
    stages: dict[str, ModelProto],
) -> Manifest:
    exits = [
        ExitInfo(
            output=site.output,
            finding=finding,
            logits=site.logits,
            features=site.features or None,
            temperature=exit_.temperature,
            fit_samples=exit_.fit_samples,
            holdout_samples=len(same),
            holdout_agreement=float(same.mean()),
        )
        for site, exit_, same in zip(sites, fitted, answers.same.T, strict=True)
    ]
    names = [name for site in sites for name in (site.output, site.logits, site.features) if name]
    given = tensor_infos(Graph(head), names)
    pieces = {name: Graph(stage) for name, stage in stages.items()}
    made = manifest.model_copy(
        update={
            "split": split.model_copy(
                update={"head": split.head.model_copy(update={"outputs": (*split.head.outputs, *given)})}
            ),
            "exit": exits[-1],
            "earlier_exits": tuple(exits[:-1]),
            "stages": tuple(
                SegmentInfo(
                    artifact=name, inputs=tensor_infos(graph, graph.inputs), outputs=tensor_infos(graph, graph.outputs)
                )
                for name, graph in pieces.items()
            ),
        }
    )
    # Through the parser once more: model_copy checks nothing.
    return Manifest.from_json(made.to_json())


def _bytes(model: ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)
