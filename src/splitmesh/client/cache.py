"""Verified parts of model versions on this node's disk, so that a restart needs no registry.

Content-addressed by SHA-256; a part appears whole, and a download that was broken off is gone on with. What is read is verified
again: its digest and, where there is a trust, the version that names it. Also remembers which version an alias pointed at when it
was last heard of. What is unused for longest goes when there is too much; an alias's version stays.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

from splitmesh.client.registry import ArtifactRef, OnProgress, RegistryClient, VersionInfo
from splitmesh.client.version_note import note_from_version, version_from_note
from splitmesh.durable import make_folders, write_file
from splitmesh.errors import MeshError, Reason
from splitmesh.model.manifest import MANIFEST, Manifest

log = logging.getLogger(__name__)

DEFAULT_MAX_BYTES = 8 * 1024**3
MAX_NUMBERED = 1000
"""Most versions remembered by number, over all models; a note has some kilobytes."""
UNFINISHED_S = 7 * 24 * 3600.0
"""A download that nobody went on with for so long is dropped."""

_UNSAFE = re.compile(r"^\.|[^a-z0-9._-]")
"""A leading dot too: a model named `..` would lie outside its folder."""


class ModelCache:
    """Parts of versions by digest; asks the registry only for what is not here.

    Args:
        folder: where everything is kept; one cache at a time.
        registry: has what is not here.
        max_bytes: most that the parts may take together. The version in use and those that a ``model@alias`` stands
            for stay even above it.
        now: the wall clock, seconds, as file systems count it.
    """

    def __init__(
        self,
        folder: Path,
        registry: RegistryClient,
        *,
        max_bytes: int = DEFAULT_MAX_BYTES,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder
        self._registry = registry
        self._max_bytes = max_bytes
        self._now = now
        self._fetching: dict[str, tuple[asyncio.Lock, int]] = {}

    async def part(self, version: VersionInfo, name: str, *, on_progress: OnProgress | None = None) -> bytes:
        """One artefact, verified; ``on_progress`` is told bytes done and altogether while it is fetched.

        Raises:
            MeshError: MODEL_INCOMPLETE, the version has none of this name; SIGNATURE_MISSING, SIGNATURE_INVALID, KEY_UNKNOWN,
                KEY_REVOKED, also of what is on disk already; STORAGE_FULL, or what kept the registry from answering.
        """
        ref = version.artifact(name)
        verified = await self._registry.verify(version)
        if verified is not version:
            await asyncio.to_thread(self._signed_since, verified)
        path = self._folder / "parts" / ref.sha256
        async with self._alone_with(ref.sha256):
            content = await asyncio.to_thread(_read_verified, path, ref)
            if content is None:
                await asyncio.to_thread(_make, path.parent)
                base = await asyncio.to_thread(self._relative, version, name)
                await self._registry.pull_to_file(ref, path, base=base, on_progress=on_progress)
                content = await asyncio.to_thread(_read_verified, path, ref)
                await asyncio.to_thread(self._drop_parts, version)
        # A disk that does not give back what it took must not stop a line.
        return await self._registry.pull_artifact(ref) if content is None else content

    async def missing(self, version: VersionInfo, names: Sequence[str]) -> list[str]:
        """Which of a version's artefacts are not here in their full length; what is here is verified when it is read."""
        refs = [version.artifact(name) for name in names]
        return await asyncio.to_thread(lambda: [ref.name for ref in refs if not self._has(ref)])

    async def manifest(self, version: VersionInfo) -> Manifest:
        """The version's manifest."""
        return Manifest.from_json(await self.part(version, MANIFEST))

    async def version(self, model: str, number: int) -> VersionInfo:
        """A version by number: from disk when known, since versions never change."""
        name = f"{model}@{number}"
        known = await self.recall(name)
        if known is None:
            known = await self._registry.get_version(model, number)
            await self.remember(known, name)
            await asyncio.to_thread(self._drop_numbered)
        else:
            await asyncio.to_thread(_touch, self._note(name))
        return known

    async def remember(self, version: VersionInfo, name: str) -> None:
        """Keep what a name such as ``model@alias`` stood for."""
        await asyncio.to_thread(_write, self._note(name), note_from_version(version))

    async def forget(self, name: str) -> None:
        """What the name stood for may go when there is no room."""
        await asyncio.to_thread(_removed, self._note(name))

    async def recall(self, name: str) -> VersionInfo | None:
        """What the name stood for when last remembered; a note of another model or number is none."""
        known = await asyncio.to_thread(_read_version, self._note(name))
        model, _, suffix = name.partition("@")
        if known is None or known.model != model or (suffix.isdigit() and known.version != int(suffix)):
            return None
        return known

    @asynccontextmanager
    async def _alone_with(self, sha256: str) -> AsyncIterator[None]:
        """One at a time fetches a content, the others find it on disk afterwards."""
        lock, users = self._fetching.get(sha256, (asyncio.Lock(), 0))
        self._fetching[sha256] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            _, users = self._fetching.pop(sha256)
            if users > 1:
                self._fetching[sha256] = (lock, users - 1)

    def _has(self, ref: ArtifactRef) -> bool:
        try:
            return (self._folder / "parts" / ref.sha256).stat().st_size == ref.size_bytes
        except OSError:
            return False

    def _signed_since(self, verified: VersionInfo) -> None:
        """Notes of this version get its new signatures, so that a restart without a registry has them."""
        for path in self._notes(_UNSAFE.sub("_", verified.model)):
            known = _read_version(path)
            if known is not None and (known.model, known.version) == (verified.model, verified.version):
                with suppress(MeshError):  # a full disk: asked for again after the next restart
                    _write(path, note_from_version(replace(known, signatures=verified.signatures)))

    def _relative(self, version: VersionInfo, name: str) -> Path | None:
        """The part of that name of the version that an alias of the model stood for last: much of it may be the same."""
        notes = _by_age(self._notes(_UNSAFE.sub("_", version.model)))
        known = (_read_version(path) for path, _ in reversed(notes) if not path.stem.isdigit())
        refs = (one.artifacts[name] for one in known if one is not None and name in one.artifacts)
        parts = (self._folder / "parts" / ref.sha256 for ref in refs)
        return next((path for path in parts if path.is_file()), None)

    def _note(self, name: str) -> Path:
        model, _, suffix = name.partition("@")
        return self._folder / "versions" / _UNSAFE.sub("_", model) / f"{_UNSAFE.sub('_', suffix)}.json"

    def _drop_parts(self, using: VersionInfo) -> None:
        unfinished = (path for glob in ("parts/.*", "versions/*/.*") for path in self._folder.glob(glob))
        for path, _ in _by_age(unfinished, before=self._now() - UNFINISHED_S):
            _removed(path)
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

    def _notes(self, model: str = "*") -> Iterable[Path]:
        return (self._folder / "versions").glob(f"{model}/[!.]*.json")


def _by_age(paths: Iterable[Path], before: float = math.inf) -> list[tuple[Path, int]]:
    """With sizes in bytes, unused for longest first; only those last used before that time, in seconds."""
    found = []
    for path in paths:
        with suppress(OSError):  # removed meanwhile
            status = path.stat()
            found.append((status.st_mtime_ns, path, status.st_size))
    return [(path, size) for time_ns, path, size in sorted(found) if time_ns < before * 1e9]


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
    """A damaged note is like none: the registry knows better."""
    try:
        return version_from_note(path.read_bytes())
    except (OSError, ValueError):
        return None


def _make(folder: Path) -> None:
    try:
        make_folders(folder)
    except OSError as error:
        raise MeshError(Reason.STORAGE_FULL, f"cannot make a folder in the cache: {error.strerror}") from error


def _write(path: Path, content: bytes) -> None:
    try:
        write_file(path, content)
    except OSError as error:
        raise MeshError(
            Reason.STORAGE_FULL, f"cannot keep {len(content)} bytes in the cache: {error.strerror}"
        ) from error
