"""Verified parts of model versions on this node's disk, so that a restart needs no registry.

Content-addressed by SHA-256, written to a temporary file and renamed: nothing is ever half there, and what is read is
verified again. Also remembers which version an alias pointed at when it was last heard of.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import tempfile
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from splitmesh.client.registry import ArtifactRef, RegistryClient, VersionInfo
from splitmesh.errors import MeshError, Reason
from splitmesh.model.manifest import MANIFEST, Manifest

_UNSAFE = re.compile(r"^\.|[^a-z0-9._-]")
"""A leading dot too: a model named `..` would lie outside its folder."""


class ModelCache:
    """Parts of versions by digest; asks the registry only for what is not here."""

    def __init__(self, folder: Path, registry: RegistryClient) -> None:
        self._folder = folder
        self._registry = registry

    async def part(self, version: VersionInfo, name: str) -> bytes:
        """One artefact, verified. MODEL_INCOMPLETE when the version has none of this name."""
        ref = version.artifacts.get(name)
        if ref is None:
            raise MeshError(Reason.MODEL_INCOMPLETE, f"{version.model} version {version.version} has no {name!r}")
        path = self._folder / "parts" / ref.sha256
        content = await asyncio.to_thread(_read_verified, path, ref)
        if content is None:
            content = await self._registry.pull_artifact(ref)
            await asyncio.to_thread(_write, path, content)
        return content

    async def manifest(self, version: VersionInfo) -> Manifest:
        """The version's manifest."""
        return Manifest.from_json(await self.part(version, MANIFEST))

    async def version(self, model: str, number: int) -> VersionInfo:
        """A version by number: from disk when known, since versions never change."""
        path = self._note(f"{model}@{number}")
        known = await asyncio.to_thread(_read_version, path)
        if known is None:
            known = await self._registry.get_version(model, number)
            await self.remember(known, f"{model}@{number}")
        return known

    async def remember(self, version: VersionInfo, name: str) -> None:
        """Keep what a name such as ``model@alias`` stood for."""
        text = json.dumps({**asdict(version), "create_time": version.create_time.isoformat()})
        await asyncio.to_thread(_write, self._note(name), text.encode())

    async def recall(self, name: str) -> VersionInfo | None:
        """What the name stood for when last remembered."""
        return await asyncio.to_thread(_read_version, self._note(name))

    def _note(self, name: str) -> Path:
        model, _, suffix = name.partition("@")
        return self._folder / "versions" / _UNSAFE.sub("_", model) / f"{_UNSAFE.sub('_', suffix)}.json"


def _read_verified(path: Path, ref: ArtifactRef) -> bytes | None:
    try:
        content = path.read_bytes()
    except OSError:
        # Not there, or not to be read any more: the registry has it.
        return None
    if len(content) != ref.size_bytes or hashlib.sha256(content).hexdigest() != ref.sha256:
        return None
    return content


def _read_version(path: Path) -> VersionInfo | None:
    try:
        fields = json.loads(path.read_bytes())
        fields["artifacts"] = {name: ArtifactRef(**ref) for name, ref in fields["artifacts"].items()}
        fields["aliases"] = tuple(fields["aliases"])
        fields["create_time"] = datetime.fromisoformat(fields["create_time"])
        return VersionInfo(**fields)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # A damaged note is like none: the registry knows better.
        return None


def _write(path: Path, content: bytes) -> None:
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise MeshError(
            Reason.STORAGE_FULL, f"cannot keep {len(content)} bytes in the cache: {error.strerror}"
        ) from error
