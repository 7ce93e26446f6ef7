"""Recipes on the wire: what is sent is what arrives, and zero stands for a default."""

from __future__ import annotations

import subprocess
import sys

import pytest

from splitmesh.api.compression.v1 import compression_pb2 as pb
from splitmesh.client.recipes import recipe_from_message, recipe_to_message
from splitmesh.compress.recipe import KINDS, Bottleneck, Budget, Exits, Int8, Recipe, make_recipe, parse_step
from splitmesh.errors import MeshError, Reason

RECIPES = [
    make_recipe([parse_step(text) for text in steps])
    for steps in (
        ["prune:share=0.5", "int8:per_channel=false", "split:at=a+b", "int8-cut", "exits:at=a+b", "leakage:steps=50,cuts=2"],
        ["distil:width=8,epochs=3", "fp16", "bottleneck:method=trained,at=a,channels=4,rates=2,epochs=7,rate_weight=0.25"],
        ["bottleneck", "exits:found_output=scores,found_score=0.25"],
        ["int8", "leakage"],
        ["prune"],
    )
]  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: ",".join(recipe.names()))
def test_a_recipe_survives_the_wire(recipe: Recipe) -> None:
    sent = pb.Recipe.FromString(recipe_to_message(recipe).SerializeToString())
    assert recipe_from_message(sent) == recipe


def test_all_kinds_of_steps_are_among_them() -> None:
    assert {step.kind for recipe in RECIPES for step in recipe.steps} == KINDS.keys()
    assert {field.name for field in pb.Step.DESCRIPTOR.fields} == {
        "quantise_cut" if kind == "int8-cut" else kind for kind in KINDS
    }


@pytest.mark.parametrize(
    "budget",
    [
        Budget(),
        Budget(max_disagreement=0.0),
        Budget(max_disagreement=0.01, max_accuracy_loss=0.0),
        Budget(max_output_error=2.0),
    ],
)
def test_a_limit_of_zero_is_not_no_limit(budget: Budget) -> None:
    recipe = make_recipe([Int8()], budget=budget, seed=7, holdout_share=0.25)
    assert recipe_from_message(recipe_to_message(recipe)) == recipe


def test_what_is_not_said_is_the_default() -> None:
    message = pb.Recipe(
        steps=[
            pb.Step(bottleneck=pb.BottleneckStep(at="a")),
            pb.Step(exits=pb.ExitsStep()),
        ]
    )
    assert recipe_from_message(message) == Recipe(steps=(Bottleneck(at=("a",)), Exits()))


def test_a_score_that_the_wire_would_turn_into_the_default_is_refused() -> None:
    recipe = Recipe(steps=(Exits(found_output="scores", found_score=0.0),))
    with pytest.raises(MeshError, match="found_score") as caught:
        recipe_to_message(recipe)
    assert caught.value.reason is Reason.FIELD_INVALID


def test_the_client_needs_nothing_that_the_base_install_lacks() -> None:
    code = (
        "import sys; import splitmesh.client.compression;"
        "bad = {'onnx', 'onnxruntime', 'scipy', 'torch', 'constriction'} & set(sys.modules); sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
