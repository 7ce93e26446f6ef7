"""Pictures of a dataset from a site to its cloud: what may leave goes up, each once.

Killed at any point and run again, only what is missing crosses: what the other side has is asked for first. Knows manifests,
digests and the site's rules (``dataset_sharing``), which are looked at before a picture is opened. Knows no names of versions
in the registry (``datasets``).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

from splitmesh.client.dataset_sharing import Rule, Sharing
from splitmesh.client.dataset_thumbnails import Thumbnail, make_thumbnail
from splitmesh.client.registry_values import OnProgress
from splitmesh.datasets.folder import PictureFolder
from splitmesh.datasets.manifest import Dataset, Entry
from splitmesh.errors import MeshError, Reason

BATCH = 256
"""Thumbnails in memory at once."""

_LOST = {Reason.ARTIFACT_NOT_FOUND: "not_here", Reason.DIGEST_MISMATCH: "damaged"}


class Contents(Protocol):
    """The other side: :class:`splitmesh.client.registry.RegistryClient`."""

    async def missing(self, sha256s: Sequence[str]) -> list[str]:
        """Which of these it does not have."""

    async def push_contents(
        self, contents: AsyncIterable[tuple[str, bytes]], *, on_progress: OnProgress | None = None
    ) -> int:
        """Uploads; all are on disk when it returns."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """What went up."""

    sent: int = 0
    sent_bytes: int = 0
    there: int = 0
    """Were there already."""
    not_here: int = 0
    """May leave but are not at this site."""
    damaged: int = 0
    """May leave but are no longer what they were."""
    stayed: Mapping[str, int] = field(default_factory=dict)
    """Pictures that may not leave, by why."""
    left: Mapping[str, Thumbnail | None] = field(default_factory=dict)
    """Pictures that are there now, as a thumbnail or (None) themselves."""
    kept_here: frozenset[str] = frozenset()
    """Pictures that are at this site and may not leave."""

    @property
    def thumbnails(self) -> int:
        """How many are there as thumbnails only."""
        return sum(one is not None for one in self.left.values())


async def push_pictures(
    registry: Contents,
    name: str,
    dataset: Dataset,
    folder: PictureFolder,
    sharing: Sharing,
    *,
    on_progress: OnProgress | None = None,
) -> Pushed:
    """Sends the pictures of a dataset that the site lets go and the registry does not have.

    Args:
        registry: the other side.
        name: the dataset's, which the rules may be about.
        dataset: the manifest.
        folder: of the site.
        sharing: the site's rules.
        on_progress: told bytes sent and bytes that may have to be sent; a thumbnail counts as its picture.

    Raises MeshError as the registry's transfers do; STORAGE_FULL there.
    """
    whole, small, stays = await asyncio.to_thread(_decided, name, dataset, sharing)
    kept_here = await asyncio.to_thread(lambda: frozenset(one.picture for one, _ in stays if folder.has(one.picture)))
    counts: Counter[str] = Counter()
    left: dict[str, Thumbnail | None] = {}
    lacking = set(await registry.missing([entry.picture for entry in whole]))
    total = sum(entry.picture_bytes for entry in whole if entry.picture in lacking)
    total += sum(entry.picture_bytes for entry, _ in small)

    def told(entry: Entry) -> None:
        counts["done_bytes"] += entry.picture_bytes
        if on_progress:
            on_progress(counts["done_bytes"], total)

    async def pictures() -> AsyncGenerator[tuple[str, bytes], None]:
        for entry in whole:
            if entry.picture not in lacking:
                counts["there"] += 1
                left[entry.picture] = None
                continue
            data = await _read(folder, entry, counts)
            if data is not None:
                counts["sent"] += 1
                counts["sent_bytes"] += len(data)
                left[entry.picture] = None
                yield entry.picture, data
            told(entry)

    async with aclosing(pictures()) as contents:
        await registry.push_contents(contents)
    waiting = iter(small)
    while batch := list(islice(waiting, BATCH)):
        await _push_small(registry, batch, folder, counts, left)
        for entry, _ in batch:
            told(entry)
    return Pushed(
        counts["sent"],
        counts["sent_bytes"],
        counts["there"],
        counts["not_here"],
        counts["damaged"],
        dict(Counter(why for _, why in stays)),
        left,
        kept_here,
    )


def _decided(
    name: str, dataset: Dataset, sharing: Sharing
) -> tuple[list[Entry], list[tuple[Entry, Rule]], list[tuple[Entry, str]]]:
    whole: list[Entry] = []
    small: list[tuple[Entry, Rule]] = []
    stays: list[tuple[Entry, str]] = []
    for entry in dataset.entries:
        rule, why = sharing.rule_for(name, entry)
        if rule is None or rule.share == "nothing":
            stays.append((entry, why))
        elif rule.share == "whole":
            whole.append(entry)
        else:
            small.append((entry, rule))
    return whole, small, stays


async def _read(folder: PictureFolder, entry: Entry, counts: Counter[str]) -> bytes | None:
    try:
        return await asyncio.to_thread(folder.read, entry.picture)
    except MeshError as error:
        if error.reason not in _LOST:
            raise
        counts[_LOST[error.reason]] += 1
        return None


async def _push_small(
    registry: Contents,
    batch: Sequence[tuple[Entry, Rule]],
    folder: PictureFolder,
    counts: Counter[str],
    left: dict[str, Thumbnail | None],
) -> None:
    made: dict[str, bytes] = {}
    for entry, rule in batch:
        picture = await _read(folder, entry, counts)
        if picture is None:
            continue
        try:
            copy, data = await asyncio.to_thread(make_thumbnail, picture, rule.long_side or 0)
        except MeshError:
            counts["damaged"] += 1
            continue
        left[entry.picture] = copy
        made[copy.sha256] = data
    lacking = await registry.missing(list(made))
    counts["there"] += len(made) - len(lacking)
    counts["sent"] += len(lacking)
    counts["sent_bytes"] += sum(len(made[sha]) for sha in lacking)

    async def contents() -> AsyncGenerator[tuple[str, bytes], None]:
        for sha in lacking:
            yield sha, made[sha]

    if lacking:
        await registry.push_contents(contents())
