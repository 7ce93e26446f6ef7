"""Verified parts of model versions on this node's disk, so that a restart needs no registry.

Content-addressed by SHA-256, written to a temporary file and renamed: nothing is ever half there, and what is read is
verified again. Also remembers which version an alias pointed at when it was last heard of. What is unused for longest
goes when there is too much; an alias's version stays.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from splitmesh.client.registry import ArtifactRef, RegistryClient, VersionInfo
from splitmesh.errors import MeshError, Reason
from splitmesh.model.manifest import MANIFEST, Manifest

log = logging.getLogger(__name__)

DEFAULT_MAX_BYTES = 8 * 1024**3
MAX_NUMBERED = 1000
"""Most versions remembered by number, over all models; a note has about a kilobyte."""

_UNSAFE = re.compile(r"^\.|[^a-z0-9._-]")
"""A leading dot too: a model named `..` would lie outside its folder."""


class ModelCache:
    """Parts of versions by digest; asks the registry only for what is not here.

    Args:
        folder: where everything is kept; one cache at a time.
        registry: has what is not here.
        max_bytes: most that the parts may take together. The version in use and those that a ``model@alias`` stands
            for stay even above it.
    """

    def __init__(self, folder: Path, registry: RegistryClient, *, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self._folder = folder
        self._registry = registry
        self._max_bytes = max_bytes

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
            await asyncio.to_thread(self._drop_parts, version)
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
            await asyncio.to_thread(self._drop_numbered)
        else:
            await asyncio.to_thread(_touch, path)
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

    def _drop_parts(self, using: VersionInfo) -> None:
        files = _by_age((self._folder / "parts").glob("[!.]*"))
        excess = sum(size for _, size in files) - self._max_bytes
        if excess <= 0:
            return
        notes = (_read_version(path) for path in self._notes() if not path.stem.isdigit())
        needed = {ref.sha256 for one in (using, *notes) if one is not None for ref in one.artifacts.values()}
        for path, size in files:
            if excess > 0 and path.name not in needed and _removed(path):
                excess -= size
        if excess > 0:
            log.warning("the cache is %d bytes above its limit; everything left is in use", excess)

    def _drop_numbered(self) -> None:
        numbered = _by_age(path for path in self._notes() if path.stem.isdigit())
        for path, _ in numbered[:-MAX_NUMBERED]:
            _removed(path)

    def _notes(self) -> Iterable[Path]:
        return (self._folder / "versions").glob("*/[!.]*.json")


def _by_age(paths: Iterable[Path]) -> list[tuple[Path, int]]:
    """With sizes in bytes, unused for longest first."""
    found = []
    for path in paths:
        with suppress(OSError):  # removed meanwhile
            status = path.stat()
            found.append((status.st_mtime_ns, path, status.st_size))
    return [(path, size) for _, path, size in sorted(found)]


def _removed(path: Path) -> bool:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("cannot remove %s from the cache: %s", path, error.strerror)
        return False
    return True


def _touch(path: Path) -> None:
    with suppress(OSError):  # a disk that only reads: the order of use is lost, nothing else
        os.utime(path)


def _read_verified(path: Path, ref: ArtifactRef) -> bytes | None:
    try:
        content = path.read_bytes()
    except OSError:
        # Not there, or not to be read any more: the registry has it.
        return None
    if len(content) != ref.size_bytes or hashlib.sha256(content).hexdigest() != ref.sha256:
        return None
    _touch(path)
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
