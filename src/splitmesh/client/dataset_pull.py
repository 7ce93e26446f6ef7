"""Pictures of a dataset from the cloud to a site: what it lacks comes down, each once and checked.

Killed at any point and run again, only what is missing or damaged crosses: what is here is read and compared first. Knows
manifests, digests and the site's rules (``dataset_sharing``). Knows no names of versions in the registry (``datasets``).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from splitmesh.client.dataset_sharing import Sharing
from splitmesh.client.registry_values import OnProgress
from splitmesh.datasets.folder import PictureFolder
from splitmesh.datasets.manifest import Dataset, Entry
from splitmesh.errors import MeshError, Reason

MAX_REFUSED = 100
"""Refused pictures that are told by name; more are only counted."""

_LACKING = (Reason.ARTIFACT_NOT_FOUND, Reason.DIGEST_MISMATCH)
_REFUSED = (Reason.IMAGE_UNDECODABLE, Reason.IMAGE_TOO_LARGE, Reason.FRAME_TOO_LARGE, Reason.DIGEST_MISMATCH)


class Source(Protocol):
    """The other side: :class:`splitmesh.client.registry.RegistryClient`."""

    async def missing(self, sha256s: Sequence[str]) -> list[str]:
        """Which of these it does not have."""

    def pull_contents(self, sha256s: Sequence[str]) -> AsyncGenerator[tuple[str, bytes], None]:
        """Downloads, verified, in the order asked."""


@dataclass(frozen=True, slots=True)
class Pulled:
    """What came down."""

    fetched: int = 0
    fetched_bytes: int = 0
    here: int = 0
    """Were here already, whole."""
    elsewhere: int = 0
    """Stayed at other sites."""
    damaged: int = 0
    """Are damaged here, and the registry does not have them."""
    refused: int = 0
    problems: Sequence[tuple[str, str]] = ()
    """Digests of the first refused pictures, and why."""


@dataclass(frozen=True, slots=True)
class Lacking:
    """What a site lacks of a dataset."""

    pictures: Sequence[str]
    """Those that are not here, or damaged."""
    damaged: frozenset[str]


def look_for(
    dataset: Dataset, folder: PictureFolder, *, on_checked: Callable[[int, int], None] | None = None
) -> Lacking:
    """Reads every picture of a dataset that is at this site and compares its digest; blocks. ``on_checked`` is told pictures done
    and altogether."""
    pictures, damaged = list[str](), set[str]()
    for done, entry in enumerate(dataset.entries, 1):
        try:
            folder.read(entry.picture)
        except MeshError as error:
            if error.reason not in _LACKING:
                raise
            pictures.append(entry.picture)
            if error.reason is Reason.DIGEST_MISMATCH:
                damaged.add(entry.picture)
        if on_checked:
            on_checked(done, len(dataset.entries))
    return Lacking(pictures, frozenset(damaged))


async def pull_pictures(
    registry: Source,
    name: str,
    dataset: Dataset,
    folder: PictureFolder,
    sharing: Sharing,
    lacking: Lacking,
    *,
    on_progress: OnProgress | None = None,
) -> Pulled:
    """Fetches the pictures of a dataset that the registry has and this site does not, or not whole any more.

    Each is on disk, and checked, before the next one is asked for; those that are no pictures or of another size than the
    manifest says are refused and told. ``lacking`` is what :func:`look_for` found; ``on_progress`` is told bytes fetched and
    altogether.

    Raises MeshError CONTENT_NOT_ALLOWED when the site's rules take nothing of this dataset in; STORAGE_FULL, and as the
    registry's transfers do.
    """
    sharing.require_accepted(name)
    by_digest = {entry.picture: entry for entry in dataset.entries}
    elsewhere = set(await registry.missing(lacking.pictures))
    wanted = [digest for digest in lacking.pictures if digest not in elsewhere]
    total = sum(by_digest[digest].picture_bytes for digest in wanted)
    counts: Counter[str] = Counter()
    problems: list[tuple[str, str]] = []
    async with aclosing(registry.pull_contents(wanted)) as contents:
        async for digest, data in contents:
            problem = await asyncio.to_thread(_keep, folder, by_digest[digest], data)
            if problem:
                counts["refused"] += 1
                problems += [(digest, problem)] if len(problems) < MAX_REFUSED else []
            else:
                counts["fetched"] += 1
                counts["fetched_bytes"] += len(data)
            counts["done_bytes"] += by_digest[digest].picture_bytes
            if on_progress:
                on_progress(counts["done_bytes"], total)
    return Pulled(
        counts["fetched"],
        counts["fetched_bytes"],
        len(by_digest) - len(lacking.pictures),
        len(elsewhere - lacking.damaged),
        len(elsewhere & lacking.damaged),
        counts["refused"],
        tuple(problems),
    )


def _keep(folder: PictureFolder, entry: Entry, data: bytes) -> str:
    """What is wrong with the picture; empty: nothing, and it is on disk."""
    if len(data) != entry.picture_bytes:
        return f"has {len(data)} bytes, the manifest says {entry.picture_bytes}"
    try:
        folder.add(data)
    except MeshError as error:
        if error.reason not in _REFUSED:
            raise
        return error.message
    return ""
