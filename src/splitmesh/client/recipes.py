"""A recipe as a message and back: the one place where both forms meet. Zero stands for a setting's default."""

from __future__ import annotations

from typing import Any, cast

from splitmesh.api.compression.v1 import compression_pb2 as pb
from splitmesh.compress.recipe import (
    Bottleneck,
    Budget,
    Distil,
    Exits,
    Fp16,
    Int8,
    Leakage,
    Prune,
    QuantiseCut,
    Recipe,
    Split,
    Step,
    make_recipe,
    step_from,
)
from splitmesh.errors import field_error

_FIELDS = {"int8-cut": "quantise_cut"}
"""Where a step's name and its field differ."""


def recipe_to_message(recipe: Recipe) -> pb.Recipe:
    """MeshError FIELD_INVALID for a setting that the wire has no way to say."""
    budget = recipe.budget.model_dump(exclude_none=True)
    return pb.Recipe(
        steps=[_step_to(step) for step in recipe.steps],
        budget=pb.Budget(**budget),
        seed=recipe.seed,
        holdout_share=recipe.holdout_share,
    )


def recipe_from_message(message: pb.Recipe) -> Recipe:
    """Checked; MeshError FIELD_INVALID names what is wrong."""
    limits = {
        name: getattr(message.budget, name) for name in Budget.model_fields if message.budget.HasField(cast(Any, name))
    }
    settings: dict[str, Any] = {"budget": limits, "seed": message.seed}
    if message.holdout_share:
        settings["holdout_share"] = message.holdout_share
    return make_recipe([_step_from(step, index) for index, step in enumerate(message.steps)], **settings)


def _step_to(step: Step) -> pb.Step:
    match step:
        case Prune():
            return pb.Step(prune=pb.PruneStep(share=step.share))
        case Distil():
            return pb.Step(distil=pb.DistilStep(width=step.width, epochs=step.epochs))
        case Fp16():
            return pb.Step(fp16=pb.Fp16Step())
        case Int8():
            return pb.Step(int8=pb.Int8Step(per_tensor=not step.per_channel))
        case Split():
            return pb.Step(split=pb.SplitStep(at=step.at))
        case QuantiseCut():
            return pb.Step(quantise_cut=pb.QuantiseCutStep())
        case Bottleneck():
            trained = step.method == "trained"
            return pb.Step(
                bottleneck=pb.BottleneckStep(
                    method=pb.BOTTLENECK_METHOD_TRAINED if trained else pb.BOTTLENECK_METHOD_CLOSED_FORM,
                    at=step.at[0] if step.at else "",
                    channels=step.channels,
                    rates=step.rates,
                    epochs=step.epochs,
                    rate_weight=step.rate_weight,
                )
            )
        case Exits():
            if step.found_output and not step.found_score:
                raise field_error("recipe.exits.found_score", "is 0, which the service reads as its default")
            return pb.Step(exits=pb.ExitsStep(at=step.at, found_output=step.found_output, found_score=step.found_score))
        case Leakage():
            return pb.Step(leakage=pb.LeakageStep(steps=step.steps, cuts=step.cuts))


def _step_from(message: pb.Step, index: int) -> Step:
    name = message.WhichOneof("step")
    if name is None:
        raise field_error(f"recipe.steps[{index}]", "says no step")
    kind = next((kind for kind, field in _FIELDS.items() if field == name), name)
    if name == "int8":
        return Int8(per_channel=not message.int8.per_tensor)
    step = getattr(message, name)
    # Zero, empty and absent are one on the wire: all mean the default.
    values = {field.name: value for field, value in step.ListFields()}
    if name == "bottleneck":
        methods = {pb.BOTTLENECK_METHOD_TRAINED: "trained"}
        if values.pop("method", 0) not in (*methods, pb.BOTTLENECK_METHOD_CLOSED_FORM, 0):
            raise field_error(f"recipe.steps[{index}].bottleneck.method", "is none that this service knows")
        values["method"] = methods.get(step.method, "closed-form")
        if step.at:
            values["at"] = (step.at,)
    elif "at" in values:
        values["at"] = tuple(values["at"])
    return step_from({"kind": kind, **values})
