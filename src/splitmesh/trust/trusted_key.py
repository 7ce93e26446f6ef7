"""A key and what it may sign: which models, which datasets, until when. Knows no roots and no keyrings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from typing import Literal

from pydantic import AwareDatetime, BaseModel, Field

from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.trust.keys import PublicKey

CLOCK_SKEW = timedelta(minutes=5)
"""How far clocks may be apart."""
MAX_PATTERNS = 64
MAX_REASON_LENGTH = 1000

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/@-]{0,63}")
_PATTERN = re.compile(r"[a-z0-9._*?\[\]!-]{1,128}")

State = Literal["active", "retired", "revoked"]
Kind = Literal["model-version", "dataset-version"]
"""Of what a key signs."""


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A key and what it may do. Without any pattern it may sign every model and every dataset; with one, only what fits."""

    public: PublicKey
    name: str
    """Whose it is, for people; one active key has it."""
    state: State = "active"
    """``retired``: what it signed before ``until`` stays good. ``revoked``: nothing that it signed is good."""
    models: tuple[str, ...] = ()
    """Patterns (``solder*``) of the models it may sign."""
    datasets: tuple[str, ...] = ()
    """Patterns of the datasets it may sign."""
    since: datetime | None = None
    """When it was trusted; older signatures of it count as well."""
    until: datetime | None = None
    """When it was retired or revoked."""
    reason: str = ""

    @property
    def key_id(self) -> str:
        """Of the public key."""
        return self.public.key_id

    @property
    def may_sign(self) -> str:
        """For people: ``all``, or the patterns."""
        patterns = (("models", self.models), ("datasets", self.datasets))
        return "; ".join(f"{kind} {', '.join(found)}" for kind, found in patterns if found) or "all"

    def check_may_sign(self, kind: Kind, name: str, times: Sequence[datetime]) -> None:
        """Raises unless this key may have signed a version of ``name`` at all of these times.

        Raises:
            MeshError: KEY_REVOKED; KEY_UNKNOWN, it is not one for this model or dataset.
        """
        about = {"key_id": self.key_id, "key": self.name}
        if self.state == "revoked":
            why = f": {self.reason}" if self.reason else ""
            raise MeshError(Reason.KEY_REVOKED, f"key {self.name!r} was revoked{why}", metadata=about)
        if self.state == "retired" and self.until is not None and (not times or max(times) > self.until + CLOCK_SKEW):
            raise MeshError(
                Reason.KEY_REVOKED, f"key {self.name!r} was retired before it signed {name!r}", metadata=about
            )
        if not self._fits(kind, name):
            what = f"{kind.removesuffix('-version')} {name!r}"
            raise MeshError(
                Reason.KEY_UNKNOWN, f"key {self.name!r} may sign {self.may_sign}, not {what}", metadata=about
            )

    def check(self) -> None:
        """FIELD_INVALID when it does not hold together."""
        if not _NAME.fullmatch(self.name):
            raise field_error("name", "1 to 64 letters, digits, dots, dashes, underscores, slashes or at signs")
        for field, patterns in (("models", self.models), ("datasets", self.datasets)):
            if len(patterns) > MAX_PATTERNS:
                raise field_error(field, f"at most {MAX_PATTERNS} patterns")
            if wrong := [pattern for pattern in patterns if not _PATTERN.fullmatch(pattern)]:
                rule = "a pattern has 1 to 128 lower case letters, digits, dots, dashes, underscores, *, ? and [...]"
                raise field_error(field, f"{wrong[0][:64]!r} fits no name: {rule}")
        if len(self.reason) > MAX_REASON_LENGTH:
            raise field_error("reason", f"at most {MAX_REASON_LENGTH} characters")
        if self.state == "retired" and self.until is None:
            raise field_error("keys", "a retired key says since when")
        if any(time is not None and time.tzinfo is None for time in (self.since, self.until)):
            raise field_error("keys", "a time without a time zone")

    def to_fields(self) -> dict[str, object]:
        """For JSON; the inverse of :class:`KeyForm`."""
        return {
            "key": self.public.to_text(),
            "name": self.name,
            "state": self.state,
            "models": list(self.models),
            "datasets": list(self.datasets),
            "since": self.since.isoformat() if self.since else None,
            "until": self.until.isoformat() if self.until else None,
            "reason": self.reason,
        }

    def _fits(self, kind: Kind, name: str) -> bool:
        if not self.models and not self.datasets:
            return True
        patterns = self.models if kind == "model-version" else self.datasets
        return any(fnmatchcase(name, pattern) for pattern in patterns)


class KeyForm(BaseModel):
    """A key in JSON; fields that are not known are ignored."""

    key: str = Field(max_length=64)
    name: str
    state: State
    models: list[str] = []
    datasets: list[str] = []
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None
    reason: str = ""

    def trusted(self) -> TrustedKey:
        """FIELD_INVALID, it is no key."""
        return TrustedKey(
            public=PublicKey.from_text(self.key),
            name=self.name,
            state=self.state,
            models=tuple(self.models),
            datasets=tuple(self.datasets),
            since=self.since,
            until=self.until,
            reason=self.reason,
        )
