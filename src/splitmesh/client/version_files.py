"""The files of a version, several at once: from a folder into the registry and from the registry into a folder.

Knows names, digests and folders. Whether a version may be used is decided before (``registry``).
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from splitmesh.client.artifacts import Artifacts
from splitmesh.client.deltas import Deltas
from splitmesh.client.partial import Partial, drop_others, left_of, require_plain
from splitmesh.client.rate import Rate
from splitmesh.client.registry_values import ArtifactRef, OnProgress
from splitmesh.client.transfer import PIECE_BYTES, in_thread, size_of
from splitmesh.durable import make_folders
from splitmesh.errors import MeshError, Reason, field_error

PARALLEL = 4
"""Artefacts moved at once."""
PIECE_S = 10.0
"""At a low rate fewer are moved at once, so that a piece of each comes within this time and no side takes the other for dead."""
MAX_BASE_FILES = 1000
"""Files of a base folder that are looked at."""

Base = Path | Mapping[str, bytes | Path]
Result = TypeVar("Result")


class VersionFiles:
    """Moves the files of versions by ``artifacts``, and by ``deltas`` where a file of another version is at hand.

    ``rate`` is the one that ``artifacts`` keeps to.
    """

    def __init__(self, artifacts: Artifacts, deltas: Deltas, rate: Rate | None = None) -> None:
        self._artifacts = artifacts
        self._deltas = deltas
        self._parallel = PARALLEL
        if rate is not None:
            self._parallel = max(1, min(PARALLEL, int(rate.bytes_per_s * PIECE_S / PIECE_BYTES)))

    async def push(
        self, files: Mapping[str, bytes | Path], base: Base | None, on_progress: OnProgress | None
    ) -> dict[str, ArtifactRef]:
        """See :meth:`splitmesh.client.registry.RegistryClient.push_files`."""
        sizes = {name: await asyncio.to_thread(size_of, content) for name, content in files.items()}
        progress = _Progress(sizes, on_progress)

        async def one(name: str) -> ArtifactRef:
            told = progress.of(name)
            old = _base_file(base, name)
            pushed = None if old is None else await self._deltas.push(name, files[name], old, told)
            return pushed or await self._artifacts.push(name, files[name], told)

        return await _some_at_once(self._parallel, one, files)

    async def pull(
        self, refs: Sequence[ArtifactRef], folder: Path, base: Path | None, on_progress: OnProgress | None
    ) -> dict[str, Path]:
        """See :meth:`splitmesh.client.registry.RegistryClient.pull_version`."""
        await asyncio.to_thread(_make, folder)
        progress = _Progress({ref.name: ref.size_bytes for ref in refs}, on_progress)
        wanted = {ref.name: ref for ref in refs}

        async def one(name: str) -> Path:
            ref, path, told = wanted[name], _inside(folder, name), progress.of(name)
            if not await asyncio.to_thread(_is_there, path, ref):
                await self._fetch(ref, path, base, told)
            await asyncio.to_thread(drop_others, path, ref.sha256)
            told(ref.size_bytes, ref.size_bytes)
            return path

        return await _some_at_once(self._parallel, one, wanted)

    async def get(self, ref: ArtifactRef, path: Path, base: Path | None, on_progress: OnProgress | None) -> None:
        """See :meth:`splitmesh.client.registry.RegistryClient.pull_to_file`."""
        if base is not None:
            left = await asyncio.to_thread(left_of, path, ref.sha256, ref.size_bytes)
            if (content := await self._deltas.pull(ref, base, left)) is not None:
                await in_thread(lambda: _write(path, ref, content))
                if on_progress is not None:
                    on_progress(ref.size_bytes, ref.size_bytes)
                return
        await self._artifacts.pull_to_file(ref, path, on_progress)

    async def _fetch(self, ref: ArtifactRef, path: Path, base: Path | None, told: OnProgress) -> None:
        if base is not None and await in_thread(lambda: _taken_over(base, path, ref)):
            return
        # What lies under the name already is mostly the same part of the version before.
        relatives = [path] if base is None else [_inside(base, ref.name), path]
        await self.get(ref, path, next((one for one in relatives if _is_plain(one)), None), told)


class _Progress:
    """One figure for several transfers."""

    def __init__(self, sizes: Mapping[str, int], on_progress: OnProgress | None) -> None:
        self._total = sum(sizes.values())
        self._done = dict.fromkeys(sizes, 0)
        self._told = on_progress

    def of(self, name: str) -> OnProgress:
        """What one transfer tells."""

        def tell(done: int, _total: int) -> None:
            self._done[name] = done
            if self._told is not None:
                self._told(sum(self._done.values()), self._total)

        return tell


async def _some_at_once(most: int, one: Callable[[str], Awaitable[Result]], names: Iterable[str]) -> dict[str, Result]:
    """By name; the first error ends all the others."""
    places = asyncio.Semaphore(most)

    async def in_its_place(name: str) -> Result:
        async with places:
            return await one(name)

    tasks = {name: asyncio.ensure_future(in_its_place(name)) for name in names}
    try:
        await asyncio.gather(*tasks.values())
    finally:
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
    return {name: task.result() for name, task in tasks.items()}


def _inside(folder: Path, name: str) -> Path:
    """Names were checked where they came from; this holds whoever calls."""
    path = folder / name
    if not name or name.startswith(".") or path.name != name or path.parent != folder:
        raise field_error("artifacts", f"{name!r} is no plain file name")
    return path


def _base_file(base: Base | None, name: str) -> bytes | Path | None:
    if base is None or not isinstance(base, Path):
        return None if base is None else base.get(name)
    path = _inside(base, name)
    return path if _is_plain(path) else None


def _make(folder: Path) -> None:
    try:
        make_folders(folder)
    except OSError as error:
        raise MeshError(Reason.STORAGE_FULL, f"cannot make the folder {folder.name}: {error.strerror}") from error


def _is_plain(path: Path) -> bool:
    with suppress(OSError):
        return stat.S_ISREG(path.lstat().st_mode)
    return False


def _is_there(path: Path, ref: ArtifactRef) -> bool:
    require_plain(path)
    return _holds(path, ref)


def _holds(path: Path, ref: ArtifactRef) -> bool:
    with suppress(OSError):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode) and status.st_size == ref.size_bytes:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == ref.sha256
    return False


def _taken_over(base: Path, path: Path, ref: ArtifactRef) -> bool:
    """Whether the base has a file of this content, under any name; it is at ``path`` then."""
    with suppress(OSError):
        files = sorted(base.iterdir(), key=lambda one: one.name != ref.name)[:MAX_BASE_FILES]
        same = next((one for one in files if not one.name.startswith(".") and _holds(one, ref)), None)
        return same is not None and _copied(same, path, ref)
    return False


def _copied(same: Path, path: Path, ref: ArtifactRef) -> bool:
    """Looked at once more under the new name: what appears there is what was verified."""
    partial = Partial(path, ref.sha256, ref.size_bytes)
    try:
        with os.fdopen(os.open(same, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            partial.copy(file)
        partial.finish()
    except MeshError as error:
        if error.reason is not Reason.DIGEST_MISMATCH:
            raise
        partial.empty()
        return False
    finally:
        partial.close()
    return True


def _write(path: Path, ref: ArtifactRef, content: bytes) -> None:
    partial = Partial(path, ref.sha256, ref.size_bytes)
    try:
        partial.empty()
        partial.append(content)
        partial.finish()
    finally:
        partial.close()
