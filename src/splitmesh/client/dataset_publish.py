"""A version's pictures to the cloud, with the version of thumbnails that belongs to it: what every push of a site does.

Knows ``dataset_push`` and ``dataset_copies``; how the version came about is the caller's business.
"""

from __future__ import annotations

from splitmesh.client.dataset_copies import Copies, publish_copies
from splitmesh.client.dataset_push import Pushed, push_pictures
from splitmesh.client.dataset_sharing import Sharing
from splitmesh.client.datasets import DatasetClient, DatasetVersionInfo
from splitmesh.client.registry import RegistryClient
from splitmesh.client.registry_values import OnProgress
from splitmesh.datasets.folder import PictureFolder
from splitmesh.datasets.manifest import Dataset


async def push_version(
    registry: RegistryClient,
    client: DatasetClient,
    info: DatasetVersionInfo,
    dataset: Dataset,
    folder: PictureFolder,
    sharing: Sharing,
    *,
    created_by: str,
    on_progress: OnProgress | None = None,
) -> tuple[Pushed, Copies]:
    """Sends what the site's rules let go of a version; safe to repeat. Raises as ``push_pictures`` and ``publish_copies`` do."""

    async def pushing() -> Pushed:
        return await push_pictures(registry, info.dataset, dataset, folder, sharing, on_progress=on_progress)

    async def published(pushed: Pushed) -> Copies:
        return await publish_copies(
            client,
            info,
            dataset,
            pushed.left,
            pushed.kept_here,
            created_by=created_by,
            may_leave=sharing.lets_manifest(info.dataset),
        )

    pushed = await pushing()
    copies = await published(pushed)
    # Copies that nothing named until now may have been collected during a long push.
    if await registry.missing([copy.sha256 for copy in pushed.left.values() if copy is not None]):
        pushed = await pushing()
        copies = await published(pushed)
    return pushed, copies
