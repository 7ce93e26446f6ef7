"""Which version of a model this head was told to answer with: one file per model, synced before anybody is told that it holds.

A withdrawn assignment leaves its generation behind, so that one that comes late does not bring it back. What is damaged counts as
not there, and says so in the log. Blocking; knows no version's contents and no stream.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from splitmesh.durable import sync_folder, write_file
from splitmesh.errors import MeshError, Reason, field_error

log = logging.getLogger(__name__)

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
"""What the registry accepts as the name of a model."""
MAX_BYTES = 64 * 1024
"""A larger file is not read."""
MAX_WITHDRAWN = 256
"""Generations kept of models that are not assigned any more; the oldest are forgotten."""
MAX_TRIAL_ID = 128

Version = Annotated[int, Field(ge=1, le=2**32 - 1)]
Generation = Annotated[int, Field(ge=1, le=2**63 - 1)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class _Kept(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TrialOrder(_Kept):
    """Another version that is tried, see ``splitmesh.api.serving.v1.Trial``."""

    trial_id: str = Field(min_length=1, max_length=MAX_TRIAL_ID)
    candidate: Version
    answer_share: Share = 0.0
    pair_share: Share = 0.0
    reference: Literal["FULL_MODEL", "LABELS"] = "FULL_MODEL"


class Assignment(_Kept):
    """One model's orders, see ``splitmesh.api.serving.v1.Assignment``."""

    model: str = Field(pattern=f"^{NAME.pattern}$")
    version: Version
    generation: Generation
    require_tail: bool = False
    trial: TrialOrder | None = None

    @model_validator(mode="after")
    def _another_candidate(self) -> Assignment:
        if self.trial is not None and self.trial.candidate == self.version:
            raise ValueError("the candidate of a trial is the version that it is compared with")
        return self


class Held(_Kept):
    """What is known of one model."""

    model: str
    generation: Generation
    """Of the assignment, or of the withdrawal."""
    assignment: Assignment | None
    """None: it was withdrawn."""
    active: int = Field(default=0, ge=0)
    """The version that answered last; 0: none did yet."""
    previous: int = Field(default=0, ge=0)
    """The one that answered before it; 0: none."""


def checked(**fields: object) -> Assignment:
    """An assignment; MeshError FIELD_INVALID names the first field that is wrong."""
    try:
        return Assignment.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in ("assignment", *first["loc"]))
        raise field_error(where, first["msg"]) from error


def checked_name(model: str) -> str:
    """MeshError FIELD_INVALID for what can be no model's name."""
    if not NAME.fullmatch(model):
        raise field_error("model", f"{model[:70]!r} is not 1 to 64 of a-z, 0-9, dot, dash and underscore")
    return model


class AssignmentFiles:
    """A folder of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self) -> dict[str, Held]:
        """All that can be read, by model."""
        held = (_read(path) for path in sorted(self._folder.glob("[!.]*.json")))
        return {one.model: one for one in held if one is not None}

    def write(self, held: Held) -> None:
        """On disk when it returns; MeshError STORAGE_FULL."""
        try:
            write_file(self._path(held.model), held.model_dump_json().encode(), mode=0o644)
        except OSError as error:
            raise MeshError(
                Reason.STORAGE_FULL, f"the assignment of {held.model!r} cannot be kept: {error.strerror}"
            ) from error
        if held.assignment is None:
            self._drop(one.model for one in self._withdrawn()[:-MAX_WITHDRAWN])

    def _withdrawn(self) -> list[Held]:
        """Oldest first."""
        found = []
        for path in self._folder.glob("[!.]*.json"):
            with suppress(OSError):
                found.append((path.stat().st_mtime_ns, path))
        held = (_read(path) for _, path in sorted(found))
        return [one for one in held if one is not None and one.assignment is None]

    def _drop(self, models: Iterable[str]) -> None:
        with suppress(OSError):  # a disk that only reads: they stay
            for model in models:
                self._path(model).unlink(missing_ok=True)
            sync_folder(self._folder)

    def _path(self, model: str) -> Path:
        return self._folder / f"{checked_name(model)}.json"


def _read(path: Path) -> Held | None:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES} bytes")
        held = Held.model_validate_json(path.read_bytes())
        if held.model != path.name.removesuffix(".json"):
            raise ValueError(f"it is about {held.model!r}")
        return held
    except (OSError, ValueError) as error:
        log.error(
            "the assignment in %s cannot be read; the model follows its alias until it is told anew: %s", path, error
        )
        return None
