"""What a site lets go of its datasets: a file that the tenant writes and the site reads, before a picture is opened.

Nothing leaves that the file does not name. Knows names, labels and splits of entries; no pixels, no network.

.. code-block:: yaml

    schema_version: 1
    manifests: [boards-*]           # datasets whose manifests may leave: labels, sites and cameras are information
    accept: ["*"]                   # datasets whose pictures may come in; without it: all
    pictures:                       # the first rule that fits a picture decides; where none fits it stays
      - datasets: [boards-*]
        labels: [person]
        share: nothing
      - datasets: [boards-*]
        sites: [lyon]
        splits: [train, val]
        share: thumbnail            # or whole
        long_side: 320
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from splitmesh.datasets.divide import Split
from splitmesh.datasets.files.inside import text
from splitmesh.datasets.files.plain_yaml import plain_yaml
from splitmesh.datasets.manifest import Entry
from splitmesh.errors import MeshError, Reason, field_error

MAX_FILE_BYTES = 1 << 18

Glob = Annotated[str, Field(min_length=1, max_length=200)]
Globs = Annotated[tuple[Glob, ...], Field(min_length=1, max_length=1000)]
Share = Literal["whole", "thumbnail", "nothing"]

NO_RULE = "no rule lets it go"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Rule(_Strict):
    """One rule; what is not said fits everything."""

    datasets: Globs = ("*",)
    """Glob patterns, as in file names; upper and lower case differ."""
    sites: Globs = ("*",)
    cameras: Globs = ("*",)
    labels: Globs = ("*",)
    """To let a picture go all of its labels have to fit; to keep it one is enough. A picture without any fits only ``*``."""
    splits: tuple[Split, ...] = ("train", "val", "test")
    share: Share
    long_side: Annotated[int, Field(ge=16, le=4096)] | None = None
    """Of a thumbnail, pixels."""

    @model_validator(mode="after")
    def _sized(self) -> Rule:
        if (self.share == "thumbnail") != (self.long_side is not None):
            raise ValueError("long_side belongs to share: thumbnail, and only there")
        return self

    def fits(self, dataset: str, entry: Entry) -> bool:
        """Whether the rule decides about this picture."""
        labels = [_fits(label, self.labels) for label in entry.labels]
        among = any(labels) if self.share == "nothing" else bool(labels) and all(labels)
        named = _fits(dataset, self.datasets) and _fits(entry.site, self.sites) and _fits(entry.camera, self.cameras)
        return named and entry.split in self.splits and (among or self.labels == ("*",))


class Sharing(_Strict):
    """The file. The default lets nothing go."""

    schema_version: Literal[1] = 1
    manifests: Annotated[tuple[Glob, ...], Field(max_length=1000)] = ()
    accept: Annotated[tuple[Glob, ...], Field(max_length=1000)] = ("*",)
    pictures: Annotated[tuple[Rule, ...], Field(max_length=1000)] = ()

    @classmethod
    def from_file(cls, path: Path) -> Sharing:
        """YAML, or JSON by the file's ending. FIELD_INVALID for anything that is not exactly of this form."""
        # A link is the owner's own: Kubernetes mounts every file of a ConfigMap as one.
        written = text(Path(os.path.realpath(path)), MAX_FILE_BYTES, "sharing")
        try:
            values = json.loads(written) if path.suffix.lower() == ".json" else plain_yaml(path, written, "sharing")
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "it"
            raise field_error("sharing", f"{path.name}: {where}: {first['msg']}") from error
        except (ValueError, RecursionError) as error:
            raise field_error("sharing", f"{path.name} is no JSON") from error

    def lets_manifest(self, dataset: str) -> bool:
        """Whether the manifest may leave."""
        return _fits(dataset, self.manifests)

    def require_manifest(self, dataset: str) -> None:
        """CONTENT_NOT_ALLOWED unless the manifest may leave."""
        if not self.lets_manifest(dataset):
            raise MeshError(
                Reason.CONTENT_NOT_ALLOWED, f"no rule of this site lets the manifest of {dataset!r} go: see manifests"
            )

    def require_accepted(self, dataset: str) -> None:
        """CONTENT_NOT_ALLOWED unless pictures of the dataset may come in."""
        if not _fits(dataset, self.accept):
            raise MeshError(
                Reason.CONTENT_NOT_ALLOWED, f"no rule of this site takes pictures of {dataset!r} in: see accept"
            )

    def makes_thumbnails(self, dataset: str) -> bool:
        """Whether pictures of the dataset may leave as thumbnails, which need a manifest of their own."""
        return any(rule.share == "thumbnail" and _fits(dataset, rule.datasets) for rule in self.pictures)

    def rule_for(self, dataset: str, entry: Entry) -> tuple[Rule | None, str]:
        """The rule that decides about a picture, and what to call it where the picture stays; None: no rule fits."""
        for number, rule in enumerate(self.pictures, 1):
            if rule.fits(dataset, entry):
                return rule, f"rule {number} keeps it"
        return None, NO_RULE


def _fits(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)
