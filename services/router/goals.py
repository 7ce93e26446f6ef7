"""What a person states about a model: how much may go wrong, for which classes, and how the threshold is to be found.

Values and their limits, and their text for the store. Knows no version: which classes there are and which scores an exit can
give, a policy finds out (``policy.py``).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields

from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.routing.rule import EXPECTED_COST, Judge, Rule, known_score

MAX_CLASS_LIMITS = 256
MAX_COST_CLASSES = 256
"""Of a table of costs, which travels with every policy."""
MAX_AUDIT_SHARE = 0.5
MAX_LABEL = 256
"""Characters of a class's name."""
AUTO = "auto"
"""Another way to say that no score is wanted in particular."""


@dataclass(frozen=True, slots=True)
class PolicyOverride:
    """Another threshold for a camera, a class or both, after a drift."""

    camera: str
    """Empty: every camera."""
    label: str
    """Class that the exit names; empty: every class."""
    threshold: float
    """At least 0; above 1 everything escalates."""
    why: str
    """One sentence."""


@dataclass(frozen=True, slots=True)
class ClassLimit:
    """A class whose mistakes count apart. At least one of the limits is above 0."""

    label: str
    """Name of the class, or its number as text where classes have no names."""
    max_missed: float = 0.0
    """P(accepted and another class is named | the reference is this class), 0..1 without 1; 0: no such limit."""
    max_false_alarms: float = 0.0
    """P(accepted and this class is named | the reference is another one), 0..1 without 1; 0: no such limit."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.label) <= MAX_LABEL:
            raise field_error("classes.label", f"has {len(self.label)} characters, expected 1..{MAX_LABEL}")
        for name in ("max_missed", "max_false_alarms"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise field_error(f"classes.{name}", f"is {value} for {self.label!r}, expected 0 to 1, without 1")
        if not (self.max_missed or self.max_false_alarms):
            raise field_error("classes", f"state no limit for {self.label!r}")


@dataclass(frozen=True, slots=True)
class Goals:
    """Defaults filled in. FIELD_INVALID for what is out of range or does not go together."""

    max_disagreement: float
    """Tolerated share of samples on which the exit answers and disagrees with the full model, 0..1, both excluded."""
    delta: float
    """Probability that a promise does not hold, 0..1, both excluded."""
    audit_share: float
    """Share of the exit's answers that are asked of the tail all the same, 0..``MAX_AUDIT_SHARE``."""
    classes: tuple[ClassLimit, ...] = ()
    """Of different classes."""
    score: str = ""
    """By its own name; empty: the one that keeps most at the edge, or ``EXPECTED_COST`` where there are costs."""
    parameters: Mapping[str, float] = field(default_factory=dict)
    """Of the score."""
    costs: tuple[float, ...] = ()
    """As :class:`splitmesh.routing.rule.Rule`; empty: every mistake costs the same."""
    escalate_unusual: bool | None = None
    """Whether samples unlike the calibration's escalate; None: where the version can tell them."""

    def __post_init__(self) -> None:
        for name in ("max_disagreement", "delta"):
            value = getattr(self, name)
            if not (math.isfinite(value) and 0 < value < 1):
                raise field_error(name, f"is {value}, expected a number between 0 and 1, both excluded")
        if not 0 <= self.audit_share <= MAX_AUDIT_SHARE:
            raise field_error("audit_share", f"is {self.audit_share}, expected 0 to {MAX_AUDIT_SHARE:g}")
        self._check_classes()
        object.__setattr__(self, "score", "" if self.score == AUTO else self.score)
        self._check_rule()

    def _check_classes(self) -> None:
        if len(self.classes) > MAX_CLASS_LIMITS:
            raise field_error("classes", f"are {len(self.classes)}, at most {MAX_CLASS_LIMITS} can be limited")
        label, often = next(iter(Counter(limit.label for limit in self.classes).most_common(1)), ("", 0))
        if often > 1:
            raise field_error("classes", f"name {label!r} {often} times")

    def _check_rule(self) -> None:
        if len(self.costs) > MAX_COST_CLASSES**2:
            raise field_error("costs", f"has {len(self.costs)} entries, at most {MAX_COST_CLASSES**2} are taken")
        if self.costs:
            Judge(Rule(self.score or EXPECTED_COST, self.parameters, self.costs))
        elif self.score:
            object.__setattr__(self, "score", known_score(self.score))
            Judge(Rule(self.score, self.parameters))
        elif self.parameters:
            raise field_error("parameters", "are given without the score that they are of")

    def to_json(self) -> str:
        """For the store."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str, default: Goals) -> Goals:
        """What is missing is as in ``default``, what is not known is left out. SERVICE_UNAVAILABLE for text that is none."""
        try:
            given = json.loads(text)
            known = {one.name: given[one.name] for one in fields(cls) if one.name in given}
            known["classes"] = tuple(ClassLimit(**limit) for limit in given.get("classes", ()))
            known["costs"] = tuple(given.get("costs", ()))
            return cls(**({"audit_share": default.audit_share, "delta": default.delta} | known))
        except (ValueError, TypeError, AttributeError, RecursionError, MeshError) as error:
            raise MeshError(
                Reason.SERVICE_UNAVAILABLE, f"goals in the router's store cannot be read: {error}"
            ) from error
