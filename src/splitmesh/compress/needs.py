"""What a recipe needs before it can begin, and from which state of a version it begins.

A recipe goes on where the version's own left off as long as its steps come later in the order; otherwise what an
earlier recipe put into the segments cannot be taken out again, and the recipe begins with the version's whole model,
cut again at the same tensors. Knows manifests and settings; runs no step.
"""

from __future__ import annotations

from importlib.util import find_spec

from splitmesh.compress.recipe import OF_THE_WHOLE, ORDER, Bottleneck, Exits, Recipe, Split
from splitmesh.compress.work import Work
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.model.artifacts import split_bytes
from splitmesh.model.calibration import Calibration
from splitmesh.model.manifest import WHOLE, Manifest, SplitInfo

_MAKES_A_CUT = ("split", "bottleneck")
_NEEDS_A_CUT = ("int8-cut", "exits")


def check(manifest: Manifest, recipe: Recipe, calibration: Calibration | None = None) -> None:
    """Refuse what cannot work before anything runs.

    Args:
        manifest: of the version the recipe is for.
        recipe: already in order, see ``Recipe``.
        calibration: its samples; None: not read yet, what depends on them is left for later.

    Raises MeshError EXTRA_MISSING (a step trains and torch is not installed), MODEL_INCOMPLETE (no cut, no classes, no
    pictures), MODEL_SHAPE_UNKNOWN (a fixed batch), CALIBRATION_INSUFFICIENT (no labels for a budget of accuracy),
    FIELD_INVALID (a setting that this model has nothing for).
    """
    if recipe.needs_torch() and find_spec("torch") is None:
        raise MeshError(
            Reason.EXTRA_MISSING,
            f"steps {_trained(recipe)} train, which needs torch: install splitmesh[train] where the recipe runs",
            metadata={"extra": "train", "steps": ",".join(_trained(recipe))},
        )
    fixed = max((info.shape[0] for info in manifest.whole.inputs if info.shape), default=-1)
    if fixed > 1:
        raise MeshError(
            Reason.MODEL_SHAPE_UNKNOWN,
            f"the model takes batches of exactly {fixed}; export it with a batch of 1 or one that varies",
        )
    _check_cut(manifest, recipe)
    _check_answers(manifest, recipe)
    if recipe.step("leakage") is not None and manifest.preprocess is None:
        raise MeshError(Reason.MODEL_INCOMPLETE, "leakage rebuilds pictures; this model takes tensors")
    if recipe.budget.max_accuracy_loss is not None and calibration is not None and calibration.labels is None:
        raise MeshError(
            Reason.CALIBRATION_INSUFFICIENT,
            "a budget of accuracy needs samples with labels; these have none (labels.csv beside the pictures)",
        )


def _check_cut(manifest: Manifest, recipe: Recipe) -> None:
    cut = manifest.split is not None
    for step in recipe.steps:
        if step.kind in _NEEDS_A_CUT and not cut:
            raise MeshError(
                Reason.MODEL_INCOMPLETE,
                f"this version is not split, and {step.kind} works on a cut; put split:at=TENSOR or bottleneck before it",
            )
        cut = cut or step.kind in _MAKES_A_CUT


def _check_answers(manifest: Manifest, recipe: Recipe) -> None:
    """What exits and the budget are measured by."""
    exits = recipe.step("exits")
    outputs = [info.name for info in manifest.whole.outputs]
    if isinstance(exits, Exits):
        if exits.found_output and exits.found_output not in outputs:
            raise field_error("recipe.exits.found_output", f"{exits.found_output!r} is no output; known: {outputs}")
        if exits.found_output and manifest.labels:
            raise field_error("recipe.exits.found_output", "is for a detector; this model names classes")
        if not exits.found_output and not manifest.labels:
            raise MeshError(
                Reason.MODEL_INCOMPLETE,
                "an exit needs a model that names classes, and this one has no labels; for a detector say found_output",
            )
    budget = recipe.budget
    if not manifest.labels and (budget.max_disagreement is not None or budget.max_accuracy_loss is not None):
        raise MeshError(
            Reason.MODEL_INCOMPLETE, "this model names no classes; its budget is max_output_error, nothing else"
        )
    if manifest.labels and budget.max_output_error is not None:
        raise field_error("recipe.budget.max_output_error", "is for a model without classes; use max_disagreement")


def start(work: Work, recipe: Recipe) -> tuple[Work, list[str]]:
    """The version as the first step finds it, and what a person should know about that.

    Raises the MeshErrors of cutting when a version must be cut anew.
    """
    split = work.manifest.split
    if split is None:
        return work, []
    if isinstance(recipe.step("split"), Split):
        return _whole_only(work), [f"began with the whole model: the version's cut at {_names(split)} is replaced"]
    bottleneck = recipe.step("bottleneck")
    if isinstance(bottleneck, Bottleneck) and bottleneck.at and list(bottleneck.at) != _cut(split):
        return _whole_only(work), [f"began with the whole model: the version's cut at {_names(split)} is replaced"]
    there = _last_group(work.manifest)
    first = recipe.steps[0].kind
    if _group(first) > there or (there <= _group("split") and first in OF_THE_WHOLE):
        return work, []
    whole = _whole_only(work)
    manifest, artifacts = split_bytes(
        work.whole(),
        _cut(split),
        further=[[info.name for info in hop.cut] for hop in split.middle],
        preprocess=whole.manifest.preprocess,
        labels=whole.manifest.labels,
    )
    manifest = manifest.model_copy(update={"leakage": whole.manifest.leakage})
    return Work(manifest, artifacts), [
        f"began with the whole model, cut again at {_names(split)}: what an earlier recipe did at the cut is done anew or gone"
    ]


def _whole_only(work: Work) -> Work:
    """The version without its cut; how much leaks through plain features stays true."""
    manifest = work.manifest
    plain = tuple(entry for entry in manifest.leakage if entry.codec == "float32")
    bare = Manifest(
        task=manifest.task,
        labels=manifest.labels,
        preprocess=manifest.preprocess,
        whole=manifest.whole.model_copy(update={"artifact": WHOLE}),
        leakage=plain,
    )
    return Work(bare, {WHOLE: work.whole()})


def _last_group(manifest: Manifest) -> int:
    """The place in the order of the last step that shows in a split version."""
    split = manifest.split
    if manifest.exit is not None:
        return _group("exits")
    hops = split.hops() if split is not None else ()
    coded = any(hop.quantisation or hop.bottleneck is not None or hop.coding is not None for hop in hops)
    return _group("int8-cut" if coded else "split")


def _group(kind: str) -> int:
    return next(number for number, group in enumerate(ORDER) if kind in group)


def _cut(split: SplitInfo) -> list[str]:
    return [info.name for info in split.cut]


def _names(split: SplitInfo) -> str:
    return " | ".join(", ".join(info.name for info in hop.cut) for hop in split.hops())


def _trained(recipe: Recipe) -> list[str]:
    return [step.kind for step in recipe.steps if Recipe(steps=(step,)).needs_torch()]
