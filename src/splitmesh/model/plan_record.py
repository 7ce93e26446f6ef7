"""What a plan found, as data: in memory, and as the artefact ``plan.json`` of the version that was made because of it.

Reads and writes; prices nothing (``plan.py``) and cuts nothing, so it needs no solver. The figures of a record are those of
whoever made the plan: only what ties it to a model, the digest and the cut, can be checked against a version.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)

from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.model.placement.problem import Objective
from splitmesh.model.plan_options import Certificate, Constraints, Kind, Link, Option, Workload
from splitmesh.model.profile_data import Profile, ProfileKey

MAX_PLAN_BYTES = 256 * 1024
"""A larger record is refused unread, and none is written."""
MAX_OPTIONS = 24
"""Options that a record keeps of a plan, which has hundreds."""
MAX_TIERS = 16

Cuts = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """Every option, the best first, and what they were priced for."""

    options: tuple[Option, ...]
    """Feasible before refused; by the objective, then by latency, then by bytes on the uplink. The first is feasible."""
    why: str
    """One sentence: why the first option wins, with the numbers and the runner-up."""
    objective: Objective
    certificate: Certificate | None
    """How good the first option can be at most; None when the profiles hold no common graph."""
    links: tuple[Link, ...]
    """From each tier to the next."""
    workload: Workload
    constraints: Constraints

    @property
    def best(self) -> Option:
        """The first option."""
        return self.options[0]

    def to_json(self) -> str:
        """The plan as indented JSON; an unlimited throughput is null."""
        return json.dumps(_plain(self), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Plan:
        """Read a plan; MeshError FIELD_INVALID says what is wrong with it."""
        try:
            return TypeAdapter(cls).validate_python(_read(json.loads(text)))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            problem = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise MeshError(Reason.FIELD_INVALID, f"the plan is not valid: {problem}") from error


class PlannedTier(BaseModel):
    """A host that the plan was made for, and the profile it was priced with."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str = Field(max_length=200)
    """``edge``, ``cloud``, or as it was named."""
    profile: ProfileKey
    """Whose times, and how they were taken."""
    profile_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of the profile as it was then: measuring again changes it."""
    host: str = Field(max_length=500)
    """Processor, cores and runtime that the times belong to."""
    calibration: Literal["random", "real"]
    slowdown: float = Field(gt=0, allow_inf_nan=False)
    """What the profile's times were multiplied by to be this host's."""
    max_model_bytes: int | None = None

    @classmethod
    def of(cls, name: str, profile: Profile, slowdown: float = 1.0, max_model_bytes: int | None = None) -> Self:
        """Of a profile as it was measured."""
        return cls(
            name=name[:200],
            profile=profile.key,
            profile_sha256=profile.sha256,
            host=profile.host[:500],
            calibration=profile.calibration,
            slowdown=slowdown,
            max_model_bytes=max_model_bytes,
        )


class PlanRecord(BaseModel):
    """A plan with what it was made for and from, and what was chosen of it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    schema_version: Literal[1] = 1
    """Another one where an older program would mistake what a record says; fields that it may do without come without that."""
    model: str = Field(min_length=1, max_length=500)
    """What was planned, for people: ``joints:3``, or a file's name."""
    whole_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of the whole model."""
    tiers: tuple[PlannedTier, ...] = Field(min_length=2, max_length=MAX_TIERS)
    """From the edge on; ``plan.links`` lead from each to the next."""
    plan: Plan
    """With the best options only, each cut with its best codec."""
    options_ranked: int = Field(ge=1)
    """How many there were."""
    chosen: int | None = Field(default=None, ge=0)
    """Index of the option that the version follows; None: nobody chose yet."""
    plan_time: AwareDatetime
    code_version: str = Field(max_length=200)

    @field_validator("plan", mode="before")
    @classmethod
    def _read_plan(cls, value: object) -> object:
        return _read(value) if isinstance(value, Mapping) else value

    @field_serializer("plan")
    def _write_plan(self, plan: Plan) -> dict[str, Any]:
        return _plain(plan)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not 1 <= len(self.plan.options) <= MAX_OPTIONS:
            raise ValueError(f"{len(self.plan.options)} options, expected 1..{MAX_OPTIONS}")
        if len(self.plan.links) != len(self.tiers) - 1:
            raise ValueError(f"{len(self.plan.links)} links between {len(self.tiers)} tiers")
        if any(len(option.tiers) not in (0, len(self.tiers)) for option in self.plan.options):
            raise ValueError("an option has other tiers than the plan")
        if self.chosen is not None and not (
            self.chosen < len(self.plan.options) and self.plan.options[self.chosen].cuts
        ):
            raise ValueError(f"option {self.chosen} is none that cuts")
        return self

    @classmethod
    def of(
        cls,
        plan: Plan,
        *,
        tiers: Sequence[PlannedTier],
        model: str,
        whole_sha256: str,
        plan_time: datetime,
        code_version: str,
    ) -> Self:
        """A record of a plan that was just made; see the fields.

        MeshError FIELD_INVALID when what was asked alone is larger than a record may be.
        """
        best = _best(plan.options)
        while True:
            record = cls(
                model=model,
                whole_sha256=whole_sha256,
                tiers=tuple(tiers),
                plan=replace(plan, options=best),
                options_ranked=len(plan.options),
                plan_time=plan_time,
                code_version=code_version,
            )
            if len(record._written()) <= MAX_PLAN_BYTES:
                return record
            if len(best) == 1:
                raise field_error("plan", f"names more than {MAX_PLAN_BYTES} bytes can hold")
            best = best[: len(best) // 2]

    @property
    def choice(self) -> Option | None:
        """The option that the version follows."""
        return None if self.chosen is None else self.plan.options[self.chosen]

    def follow(self, cuts: Sequence[Sequence[str]] = ()) -> tuple[PlanRecord, Cuts]:
        """The record with the option that a split follows, and its cuts.

        Args:
            cuts: the best option with these is followed; none: the one that was chosen before, or the best that cuts.

        Raises MeshError FIELD_INVALID when there is none, or the plan refuses it.
        """
        wanted = [set(cut) for cut in cuts]
        if not wanted and self.choice is not None:
            wanted = [set(cut) for cut in self.choice.cuts]
        found = [
            (number, option)
            for number, option in enumerate(self.plan.options)
            if option.cuts and wanted in ([], [set(cut) for cut in option.cuts])
        ]
        if not found:
            where = "; then at ".join(", ".join(cut) for cut in cuts)
            raise field_error("plan", f"has no option that cuts at {where}" if where else "has no option that cuts")
        number, option = next(((number, option) for number, option in found if option.feasible), found[0])
        if not option.feasible:
            raise field_error("plan", f"refuses {option.name}: {option.refused_because}")
        return self.model_copy(update={"chosen": number}), option.cuts

    def to_json(self) -> str:
        """The record as indented JSON, ASCII; an unlimited throughput is null.

        MeshError FIELD_INVALID when it is larger than a record may be: one that was read may have been written more tightly.
        """
        text = self._written()
        _require_size(len(text))
        return text

    def _written(self) -> str:
        return json.dumps(self.model_dump(mode="json"), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read a record, UTF-8; what it says that is not known here is passed over. MeshError FIELD_INVALID names a problem."""
        try:
            content = text.encode() if isinstance(text, str) else text
        except UnicodeEncodeError as error:
            raise field_error("plan", "is no plan: it is no Unicode text") from error
        _require_size(len(content))
        try:
            record = cls.model_validate_json(content)
            record.plan.to_json()  # finds numbers that are not finite
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "plan"
            raise field_error("plan", f"is no plan: {where}: {first['msg']}"[:500]) from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise field_error("plan", f"is no plan: {error}"[:500]) from error
        return record


def _require_size(size_bytes: int) -> None:
    if size_bytes > MAX_PLAN_BYTES:
        raise field_error("plan", f"has {size_bytes} bytes, more than {MAX_PLAN_BYTES}")


def _best(options: Sequence[Option]) -> tuple[Option, ...]:
    """In their order; of every cut its best codec, and of every kind one at least."""
    kept = dict[tuple[Kind, Cuts], Option]()
    kinds = set[Kind]()
    for option in options:
        if len(kept) < MAX_OPTIONS - len(Kind) or option.kind not in kinds:
            kept.setdefault((option.kind, option.cuts or (option.cut,)), option)
            kinds.add(option.kind)
    return tuple(kept.values())


_DERIVED = ("name", "latency_ms", "feasible")
"""Of an option, written for who reads the file and not read."""


def _plain(plan: Plan) -> dict[str, Any]:
    """What JSON knows."""
    content: dict[str, Any] = asdict(plan)
    for entry, option in zip(content["options"], plan.options, strict=True):
        entry |= {name: getattr(option, name) for name in _DERIVED}
        if math.isinf(option.throughput_fps):
            entry["throughput_fps"] = None
    content["constraints"]["unsupported_on_edge"] = sorted(plan.constraints.unsupported_on_edge)
    return content


def _read(content: Any) -> dict[str, Any]:
    """The inverse of :func:`_plain`, for validation; ValueError, TypeError or KeyError for what is no plan."""
    options = []
    for entry in content["options"]:
        rate = entry["throughput_fps"]
        plain = {name: value for name, value in entry.items() if name not in _DERIVED}
        options.append({**plain, "throughput_fps": math.inf if rate is None else rate})
    return {**content, "options": options}
