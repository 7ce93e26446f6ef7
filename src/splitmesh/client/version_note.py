"""A version as a note on disk, in JSON. Older notes have no lineage and no signatures: those of an unsigned version.

Knows no folder.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from datetime import datetime
from typing import Any

from splitmesh.client.registry_messages import is_digest, is_plain_name
from splitmesh.client.registry_values import ArtifactRef, VersionInfo
from splitmesh.model.lineage import Lineage


def note_from_version(version: VersionInfo) -> bytes:
    """The note."""
    fields = {
        "model": version.model,
        "version": version.version,
        "parent": version.parent,
        "artifacts": {name: vars(ref) for name, ref in version.artifacts.items()},
        "created_by": version.created_by,
        "description": version.description,
        "aliases": version.aliases,
        "create_time": version.create_time.isoformat(),
        "lineage": version.lineage.to_json(),
        "signatures": [b64encode(one).decode() for one in version.signatures],
        "holders": version.holders,
    }
    return json.dumps(fields).encode()


def version_from_note(note: bytes) -> VersionInfo:
    """The version; ValueError for what is no note."""
    try:
        fields = json.loads(note)
        fields["artifacts"] = {name: _ref(name, ref) for name, ref in fields["artifacts"].items()}
        fields["aliases"] = tuple(fields["aliases"])
        fields["create_time"] = datetime.fromisoformat(fields["create_time"])
        fields["lineage"] = Lineage.from_json(fields["lineage"]) if "lineage" in fields else Lineage()
        fields["signatures"] = tuple(b64decode(one, validate=True) for one in fields.get("signatures", ()))
        fields["holders"] = tuple(fields.get("holders", ()))
        return VersionInfo(**fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError("this is no note of a version") from error


def _ref(name: str, fields: dict[str, Any]) -> ArtifactRef:
    ref = ArtifactRef(**fields)
    if ref.name != name or not is_plain_name(name) or not is_digest(ref.sha256):
        raise ValueError(f"{name!r} names no file")
    return ref
