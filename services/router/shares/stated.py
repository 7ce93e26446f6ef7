"""What the applications of a site may use together, as a person stated it: checked values, and their text in the store.

Knows no heads: who gets what of a site's budget is in ``share_division.py``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.routing.demand import WEIGHTS
from splitmesh.routing.sharing import Limits

MAX_APPLICATIONS = 256
"""Named by one site."""
MAX_LIMIT = 1e12
"""Per second; beyond it a number is a mistake."""

_SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_APPLICATION = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Place:
    """An application's place in a site's budget. MeshError FIELD_INVALID for values out of range."""

    application: str
    """A model's name."""
    weight: float = 1.0
    """What a sample's worth is multiplied by, within ``WEIGHTS``."""
    min_share: float = 0.0
    """Of its hard samples, 0..1: they cross if at all possible, the worthiest first."""

    def __post_init__(self) -> None:
        application_from("applications.application", self.application)
        if not WEIGHTS[0] <= self.weight <= WEIGHTS[1]:
            raise field_error("applications.weight", f"is {self.weight}, expected {WEIGHTS[0]:g} to {WEIGHTS[1]:g}")
        if not 0 <= self.min_share <= 1:
            raise field_error("applications.min_share", f"is {self.min_share}, expected 0 to 1")


@dataclass(frozen=True)
class Site:
    """A budget. MeshError FIELD_INVALID for values out of range."""

    name: str
    """As its heads' ``SPLITMESH_SITE``."""
    bytes_per_s: float = 0.0
    """0: none stated."""
    cloud_ms_per_s: float = 0.0
    """0: none stated."""
    applications: tuple[Place, ...] = field(default=())
    """Those that are not named weigh 1 and have no minimum."""

    def __post_init__(self) -> None:
        site_from("site", self.name)
        for name in ("bytes_per_s", "cloud_ms_per_s"):
            if not 0 <= getattr(self, name) <= MAX_LIMIT:
                raise field_error(name, f"is {getattr(self, name)}, expected 0 (none) to {MAX_LIMIT:g}")
        if len(self.applications) > MAX_APPLICATIONS:
            raise field_error("applications", f"names {len(self.applications)}, expected at most {MAX_APPLICATIONS}")
        if len(self._places) < len(self.applications):
            raise field_error("applications", "names an application twice")

    @property
    def limits(self) -> Limits:
        """What was stated; infinite where nothing was."""
        return Limits(self.bytes_per_s or float("inf"), self.cloud_ms_per_s or float("inf"))

    def place(self, application: str) -> Place:
        """Of an application, named or not; the name is checked already."""
        return self._places.get(application) or Place(application)

    def to_json(self) -> str:
        """For the store."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Site:
        """What :meth:`to_json` wrote. MeshError SERVICE_UNAVAILABLE for another text: the store was damaged."""
        try:
            fields: dict[str, Any] = json.loads(text)
            places: Iterable[dict[str, Any]] = fields.pop("applications")
            return cls(**fields, applications=tuple(Place(**place) for place in places))
        except (MeshError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise MeshError(
                Reason.SERVICE_UNAVAILABLE, f"the router's store holds no site's budget: {text[:80]!r}"
            ) from error

    @cached_property
    def _places(self) -> dict[str, Place]:
        return {place.application: place for place in self.applications}


def site_from(field: str, name: str) -> str:
    """A site's name; MeshError FIELD_INVALID when it cannot be one."""
    if not _SITE.fullmatch(name):
        raise field_error(
            field,
            f"{name[:80]!r} is no site's name: letters, digits, '.', '_', '-', at most 64, a letter or digit first",
        )
    return name


def application_from(field: str, name: str) -> str:
    """An application's name, which is a model's; MeshError FIELD_INVALID when it cannot be one."""
    if not _APPLICATION.fullmatch(name):
        raise field_error(field, f"{name[:80]!r} is no model's name: a-z, 0-9, '.', '_', '-', at most 64 characters")
    return name
