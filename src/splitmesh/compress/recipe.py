"""A recipe as data: the steps, their settings, the order they make sense in, and how far the result may be off.

Written as text (``bottleneck:method=trained,channels=4``) on the command line and as messages on the wire; both become
the same values here. Knows nothing of how a step is done.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from splitmesh.errors import MeshError, Reason, field_error

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
TensorName = Annotated[str, Field(min_length=1, max_length=1024)]


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Prune(_Data):
    """Structured pruning: whole channels inside blocks go, the weights behind them make up for it (least squares)."""

    kind: Literal["prune"] = "prune"
    share: float = Field(default=0.3, gt=0, le=0.9)
    """Of the channels that can go."""


class Distil(_Data):
    """A light edge model taught by the model's own answers; replaces the whole."""

    kind: Literal["distil"] = "distil"
    width: int = Field(default=16, ge=4, le=256)
    """Channels of its first stage."""
    epochs: int = Field(default=30, ge=1, le=1000)


class Fp16(_Data):
    """Weights and arithmetic in 16-bit floats; inputs and outputs stay as they are."""

    kind: Literal["fp16"] = "fp16"


class Int8(_Data):
    """Static 8-bit arithmetic (QDQ), calibrated."""

    kind: Literal["int8"] = "int8"
    per_channel: bool = True
    """One scale per output channel of a weight."""


class Split(_Data):
    """Cuts a version that is whole, exactly."""

    kind: Literal["split"] = "split"
    at: tuple[TensorName, ...] = Field(min_length=1, max_length=64)


class QuantiseCut(_Data):
    """Rounds what crosses the cut to 8 bits, entropy coded."""

    kind: Literal["int8-cut"] = "int8-cut"


class Bottleneck(_Data):
    """Few channels at the cut: an encoder ends the head, a decoder starts the tail, 8 bits, entropy coded, several rates."""

    kind: Literal["bottleneck"] = "bottleneck"
    method: Literal["closed-form", "trained"] = "closed-form"
    """``closed-form``: principal components, seconds; ``trained``: distilled with a rate term, needs torch."""
    at: tuple[TensorName, ...] = Field(default=(), max_length=1)
    """The tensor to cut at; empty: the version's own cut or, for one that is whole, the best of the cuts offered."""
    channels: int = Field(default=0, ge=0, le=4096)
    """Of the code; 0: chosen within the budget."""
    rates: int = Field(default=4, ge=1, le=8)
    """At most so many; fewer where they would not differ."""
    epochs: int = Field(default=40, ge=1, le=1000)
    """Of training; ignored by the closed form."""
    rate_weight: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Price of a bit against a unit of distortion while training; 0: chosen within the budget."""


class Exits(_Data):
    """Exits fitted on the model's own answers: one at the cut, and one at each tensor named before it."""

    kind: Literal["exits"] = "exits"
    at: tuple[TensorName, ...] = Field(default=(), max_length=4)
    """Tensors of the head before the cut, from the input on; the exit at the cut is always there."""
    found_output: str = ""
    """For a detector: the output whose scores say that something was found; empty: a classifier."""
    found_score: Share = 0.5
    """For a detector: a score from here on is something."""


class Leakage(_Data):
    """A decoder trained to rebuild the picture from what crosses, at the cut or at every offered cut; needs torch."""

    kind: Literal["leakage"] = "leakage"
    steps: int = Field(default=600, ge=10, le=100_000)
    """Training steps per cut."""
    cuts: int = Field(default=6, ge=1, le=64)
    """At most so many, for a version that is whole."""


Step = Annotated[
    Prune | Distil | Fp16 | Int8 | Split | QuantiseCut | Bottleneck | Exits | Leakage, Field(discriminator="kind")
]

_STEPS: TypeAdapter[Step] = TypeAdapter(Step)

KINDS: dict[str, type[BaseModel]] = {model.model_fields["kind"].default: model for model in get_args(get_args(Step)[0])}
"""Every step by name."""

ORDER = (("prune", "distil"), ("fp16", "int8"), ("split",), ("int8-cut", "bottleneck"), ("exits",), ("leakage",))
"""What comes before what; of one group at most one."""

OF_THE_WHOLE = frozenset({"prune", "distil", "fp16", "int8"})
"""Steps that change the whole model: a split version is cut again behind them."""

NEEDS_TORCH = frozenset({"distil", "leakage"})
"""Beside a trained bottleneck."""


class Budget(_Data):
    """How far the result may be off, against the model as it was; measured on samples that decided nothing."""

    max_disagreement: Share | None = None
    """Share of samples where another class is named."""
    max_accuracy_loss: Share | None = None
    """Accuracy lost against the labels, e.g. 0.01 for one point; needs labelled samples."""
    max_output_error: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """For a model without classes: relative error of the outputs, |difference| / |output|, root mean squares."""


class Recipe(_Data):
    """Steps in order, and the budget."""

    steps: tuple[Step, ...] = Field(min_length=1, max_length=len(ORDER))
    budget: Budget = Budget()
    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    """Of the division of the samples and of all training."""
    holdout_share: float = Field(default=0.3, gt=0, lt=1)
    """Of the samples, kept from everything but the measuring."""

    @model_validator(mode="after")
    def _in_order(self) -> Recipe:
        groups = [_group(step.kind) for step in self.steps]
        if groups != sorted(set(groups)):
            order = ", then ".join(" or ".join(group) for group in ORDER)
            raise ValueError(f"steps {self.names()} are in no order that makes sense; at most one each of: {order}")
        return self

    def names(self) -> list[str]:
        """Of the steps."""
        return [step.kind for step in self.steps]

    def step(self, kind: str) -> Step | None:
        """The step of this kind, where there is one."""
        return next((step for step in self.steps if step.kind == kind), None)

    def needs_torch(self) -> bool:
        """Whether a step trains something."""
        return any(
            step.kind in NEEDS_TORCH or (isinstance(step, Bottleneck) and step.method == "trained")
            for step in self.steps
        )

    def digest(self) -> str:
        """The same for the same work, 64 hexadecimal digits."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def make_recipe(steps: Sequence[Step], **settings: Any) -> Recipe:
    """A checked recipe; MeshError FIELD_INVALID names what is wrong with it."""
    try:
        return Recipe(steps=tuple(steps), **settings)
    except ValidationError as error:
        raise _refused("recipe", error) from error


def parse_step(text: str) -> Step:
    """A step from ``name`` or ``name:key=value,key=value``; lists are separated by ``+``.

    MeshError FIELD_INVALID for an unknown name or setting, or a value out of range.
    """
    name, _, settings = text.partition(":")
    kind = KINDS.get(name.strip())
    if kind is None:
        raise field_error("recipe", f"{name.strip()!r} is no step; known: {', '.join(KINDS)}")
    values: dict[str, Any] = {"kind": name.strip()}
    for part in filter(None, settings.split(",")):
        key, equals, value = part.partition("=")
        field = kind.model_fields.get(key.strip())
        if field is None or key.strip() == "kind" or not equals:
            known = ", ".join(entry for entry in kind.model_fields if entry != "kind") or "none"
            raise field_error("recipe", f"{part.strip()!r} is no setting of {name.strip()}; known: {known}")
        values[key.strip()] = value.strip().split("+") if key.strip() == "at" else value.strip()
    return step_from(values)


def step_from(values: dict[str, Any]) -> Step:
    """A step from its settings and ``kind``; MeshError FIELD_INVALID."""
    try:
        return _STEPS.validate_python(values)
    except ValidationError as error:
        raise _refused(f"recipe.{values.get('kind', '')}", error) from error


def step_text(step: Step) -> str:
    """The step as :func:`parse_step` reads it, settings at their default left out."""
    changed = {name: value for name, value in step.model_dump(exclude_defaults=True).items() if name != "kind"}
    settings = ",".join(f"{name}={'+'.join(value) if name == 'at' else value}" for name, value in changed.items())
    return f"{step.kind}:{settings}" if settings else step.kind


def _group(kind: str) -> int:
    return next(number for number, group in enumerate(ORDER) if kind in group)


def _refused(field: str, error: ValidationError) -> MeshError:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in (field, *first["loc"]))
    problem = first["msg"].removeprefix("Value error, ")
    return MeshError(Reason.FIELD_INVALID, f"{where}: {problem}", fields=[(where, problem)])
