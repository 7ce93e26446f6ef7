"""Profiles on disk: measuring takes seconds, versions never change, so each is measured once.

A cache, not a store: what is missing, damaged or too old to fit is measured again. Knows nothing of how profiles are
made.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from splitmesh.model.profile_data import Profile

log = logging.getLogger(__name__)


class PictureSize(BaseModel):
    """What one picture weighs when it is sent whole."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    codec: str
    """``jpeg q90`` measured on the calibration pictures, or ``raw``."""
    size_bytes: int = Field(ge=1)


class StoredProfile(BaseModel):
    """A profile with what it was made under."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    budget_s: float = Field(ge=0, allow_inf_nan=False)
    picture: PictureSize
    profile: Profile


class ProfileCache:
    """Profiles by model and version, at most ``most`` of them. Its methods read and write files: call in a thread."""

    def __init__(self, folder: Path, most: int) -> None:
        self._folder = folder
        self._most = most

    def get(self, model: str, version: int) -> StoredProfile | None:
        """The profile, or None when there is none that can be read."""
        path = self._path(model, version)
        try:
            found = StoredProfile.model_validate_json(path.read_bytes())
            os.utime(path)
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            log.warning("the cached profile of %s v%d is damaged and is measured again: %s", model, version, error)
            return None
        return found

    def put(self, model: str, version: int, stored: StoredProfile) -> None:
        """Keep it. A full disk costs the next caller a measurement, nothing else."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("wb", dir=self._folder, suffix=".tmp", delete=False) as file:
                file.write(stored.model_dump_json().encode())
            os.replace(file.name, self._path(model, version))
            self._evict()
        except OSError as error:
            log.warning("the profile of %s v%d could not be kept: %s", model, version, error)

    def _evict(self) -> None:
        paths = sorted(self._folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        for path in paths[self._most :]:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()

    def _path(self, model: str, version: int) -> Path:
        return self._folder / f"{quote(model, safe='')}@{version}.json"
