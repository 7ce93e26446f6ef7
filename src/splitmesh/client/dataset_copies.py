"""The version of what sites let go of a dataset: each site's push adds its pictures to those of the others.

Knows the registry's versions and manifests; what may leave and how a copy is made, ``dataset_push`` and ``dataset_thumbnails``
know.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from splitmesh.client.dataset_thumbnails import Thumbnail, left_of, with_thumbnails
from splitmesh.client.datasets import DatasetClient, DatasetVersionInfo
from splitmesh.datasets.manifest import Dataset
from splitmesh.errors import MeshError, Reason

ENDING = "-thumbnails"
"""What is put behind the name of a dataset for the one of its thumbnails."""
ROUNDS = 8
"""Of merging what other sites made at the same time."""

_NOT_TRUSTED = frozenset({Reason.SIGNATURE_MISSING, Reason.SIGNATURE_INVALID, Reason.KEY_UNKNOWN, Reason.KEY_REVOKED})
_NONE = frozenset({Reason.DATASET_NOT_FOUND, Reason.FIELD_INVALID})
"""Why a name has no versions; the second: it is too long for any."""
_Left = Mapping[str, Thumbnail | None]


@dataclass(frozen=True, slots=True)
class Copies:
    """What is known of a dataset's copies after a push."""

    version: DatasetVersionInfo | None = None
    """The one that says it; None: there is none, and this site has none to make."""
    still: int = 0
    """Pictures of that version that this site does not let go, or not so large: somebody has to delete it, since no version can
    take its place that is left with nothing, or whose manifest may not leave."""


async def publish_copies(
    client: DatasetClient,
    source: DatasetVersionInfo,
    dataset: Dataset,
    left: Mapping[str, Thumbnail | None],
    kept: Collection[str],
    *,
    created_by: str,
    may_leave: bool = True,
) -> Copies:
    """The version of what all sites let go of ``source``; one that says the same already where there is one.

    What one site takes back while another one's push is under way may come back with that push, until the first pushes again.

    Args:
        client: of the registry.
        source: the version whose pictures they are.
        dataset: its manifest.
        left: what this site let go: pictures by digest, as a thumbnail or (None) themselves.
        kept: pictures that this site has and does not let go, whatever an earlier version says.
        created_by: who does.
        may_leave: whether a manifest of them may.

    A site without thumbnails makes a version only to take back thumbnails of ``kept``: whole pictures it may have fetched. What
    is taken back is in no new version; earlier ones have it until somebody deletes them. Versions of others that do not verify
    count for nothing. Raises MeshError as ``DatasetClient.create`` and ``manifest`` do.
    """
    name = f"{source.dataset}{ENDING}"
    text = f"what {source.dataset}:{source.version} let go of its sites"
    small = any(copy is not None for copy in left.values())
    if not small and not kept:
        return Copies()
    known, found = 0, dict[str, Thumbnail | None](left)
    made: DatasetVersionInfo | None = None
    for _ in range(ROUNDS):
        versions = [one for one in await _versions(client, name) if one.description == text]
        seen = await _seen(client, dataset, versions, known, (made, found) if made else None)
        newest, told = seen[0] if seen else (None, {})
        for _, says in seen:
            found = {**says, **found}
        found = {picture: copy for picture, copy in found.items() if picture in left or picture not in kept}
        back = [picture for picture, copy in told.items() if _taken_back(picture, copy, left, kept)]
        if not small and not made and all(told[picture] is None for picture in back):
            return Copies()
        if back and not (found and may_leave):
            return Copies(newest, len(back))
        merged = await asyncio.to_thread(with_thumbnails, dataset, found)
        if same := await _same(client, merged.id, newest, () if back else versions):
            return Copies(same)
        known = versions[0].version if versions else 0
        parent = newest.version if newest else 0
        made = await client.create(name, merged, created_by=created_by, parent=parent, description=text)
    raise MeshError(Reason.SERVICE_UNAVAILABLE, f"other sites go on adding to {name}: push again", retry_after_s=10.0)


async def _seen(
    client: DatasetClient,
    dataset: Dataset,
    versions: Sequence[DatasetVersionInfo],
    known: int,
    made: tuple[DatasetVersionInfo, _Left] | None,
) -> list[tuple[DatasetVersionInfo, _Left]]:
    """Versions that verify and what they say, newest first: the newest, which has what was in those before it; with one
    ``made`` since the last look at those up to ``known``, all that came since, which may not have seen each other."""
    seen: list[tuple[DatasetVersionInfo, _Left]] = []
    for other in versions:
        if made and other.version <= known:
            break
        own = made[1] if made and made[0].version == other.version else None
        says = own or await _left(client, dataset, other)
        if says is not None:
            seen.append((other, says))
            if not made:
                break
    return seen


def _taken_back(picture: str, copy: Thumbnail | None, left: _Left, kept: Collection[str]) -> bool:
    if picture not in left:
        return picture in kept
    ours = left[picture]
    return ours is not None and (copy is None or copy.width * copy.height > ours.width * ours.height)


async def _same(
    client: DatasetClient,
    manifest: str,
    newest: DatasetVersionInfo | None,
    earlier: Sequence[DatasetVersionInfo],
) -> DatasetVersionInfo | None:
    """``newest``, which is verified, or an earlier one that verifies, with this manifest."""
    if newest and newest.manifest.sha256 == manifest:
        return newest
    for one in earlier:
        if one.manifest.sha256 == manifest and await _verifies(client, one):
            return one
    return None


async def _versions(client: DatasetClient, name: str) -> Sequence[DatasetVersionInfo]:
    try:
        return await client.versions(name)
    except MeshError as error:
        if error.reason not in _NONE:
            raise
        return []


async def _verifies(client: DatasetClient, version: DatasetVersionInfo) -> bool:
    try:
        await client.verify(version)
    except MeshError as error:
        if error.reason not in _NOT_TRUSTED:
            raise
        return False
    return True


async def _left(client: DatasetClient, dataset: Dataset, other: DatasetVersionInfo) -> _Left | None:
    """None for one that does not verify."""
    if not await _verifies(client, other):
        return None
    thumbnails = await client.manifest(other)
    return await asyncio.to_thread(left_of, dataset, thumbnails)
