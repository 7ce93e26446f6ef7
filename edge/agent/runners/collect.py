"""Collecting: samples that this host's heads keep become a version of a dataset; pictures leave as far as the site lets them.

Two rules stand before every picture: the head's own (``SPLITMESH_SAMPLE_SHARING``), which lets it out of the head into the
site's folder, and the site's (``SPLITMESH_SHARING``), which lets it out of the site. Knows both only by their answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from edge.agent.runners.port import Tell, progress
from splitmesh.api.fleet.v1 import fleet_pb2
from splitmesh.client.dataset_log import SyncLog
from splitmesh.client.dataset_publish import push_version
from splitmesh.client.dataset_sharing import Sharing
from splitmesh.client.datasets import DatasetClient
from splitmesh.client.registry import RegistryClient
from splitmesh.client.sample_pictures import keep_pictures
from splitmesh.client.samples import SERVICE, SampleClient
from splitmesh.datasets.folder import PictureFolder
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import Channels
from splitmesh.kernel.discovery_static import StaticDiscovery
from splitmesh.samples.freeze import freeze
from splitmesh.samples.kept import Filter
from splitmesh.samples.record import SampleRecord

LOG = "sync.jsonl"
"""What left this site and when, beside its pictures; the same that ``splitmesh datasets push`` writes."""
MAX_RECORDS = 1_000_000
MAX_WORDS = 200


class CollectRunner:
    """A :class:`~edge.agent.runners.port.Runner`.

    Args:
        registry: takes the pictures.
        datasets: takes the version.
        addresses: of this host's heads that answer.
        node: this host, for who made the version.
        folder: of the site's pictures.
        sharing: file of the site's rules; None: nothing leaves.
    """

    at_once = False

    def __init__(
        self,
        registry: RegistryClient,
        datasets: DatasetClient,
        addresses: Callable[[], Sequence[str]],
        node: str,
        folder: Path,
        sharing: Path | None,
    ) -> None:
        self._registry = registry
        self._datasets = datasets
        self._addresses = addresses
        self._node = node
        self._folder = folder
        self._sharing = sharing

    async def run(self, task: fleet_pb2.Task, tell: Tell) -> Mapping[str, str]:
        """The version and what is in it.

        Raises MeshError CONTENT_NOT_ALLOWED (a rule keeps the manifest or the pictures); SERVICE_UNAVAILABLE (no head answers);
        CALIBRATION_INSUFFICIENT (too few samples for three splits); FIELD_INVALID; what the folder and the registry raise.
        """
        work = task.collect
        # Read anew for each task: the tenant may have changed the rules meanwhile.
        rules = Sharing() if self._sharing is None else await asyncio.to_thread(Sharing.from_file, self._sharing)
        rules.require_manifest(work.dataset)
        folder = PictureFolder(self._folder)
        by = f"agent {self._node}"
        async with _taking_in(folder), self._samples() as source:
            tell(progress("listing", 0.0))
            records = await _records(source, work)

            def kept(done: int, total: int) -> None:
                tell(progress("keeping", 0.1 + 0.4 * done / total, f"{done} of {total} pictures"))

            lost = await keep_pictures(source, records, folder, kept)
            found = [record for record in records if record.id not in lost]
            dataset = await asyncio.to_thread(freeze, found, seed=0)
            sha256 = await asyncio.to_thread(folder.keep_manifest, dataset)
        tell(progress("publishing", 0.5))
        info = await self._datasets.create(
            work.dataset,
            dataset,
            created_by=by,
            description=work.description[:MAX_WORDS],
            # The same samples make one version, however often the task is begun.
            request_id=f"collect-{task.id}-{sha256[:16]}",
        )

        def pushed_so_far(done: int, total: int) -> None:
            tell(progress("pushing", 0.55 + 0.4 * (done / total if total else 1.0), f"{done:,} of {total:,} bytes"))

        log = SyncLog(self._folder / LOG)
        about = {"dataset": f"{info.dataset}:{info.version}", "manifest": sha256, "by": by}
        await asyncio.to_thread(log.add, datetime.now(UTC), "pushing", about)
        try:
            pushed, copies = await push_version(
                self._registry,
                self._datasets,
                info,
                dataset,
                folder,
                rules,
                created_by=by,
                on_progress=pushed_so_far,
            )
        except MeshError as error:
            failed = {**about, "reason": error.reason.value}
            await asyncio.to_thread(log.add, datetime.now(UTC), "push failed", failed)
            raise
        left = {
            "sent": pushed.sent,
            "sent_bytes": pushed.sent_bytes,
            "there": pushed.there,
            "stayed": dict(pushed.stayed),
        }
        await asyncio.to_thread(log.add, datetime.now(UTC), "pushed", {**about, **left})
        thumbnails = {} if copies.version is None else {"thumbnails_version": str(copies.version.version)}
        return {
            "dataset": info.dataset,
            "version": str(info.version),
            "samples": str(len(records)),
            "pictures": str(len(dataset.entries)),
            "lost": str(len(lost)),
            "sent": str(pushed.sent),
            "stayed": str(sum(pushed.stayed.values())),
            **thumbnails,
        }

    @asynccontextmanager
    async def _samples(self) -> AsyncIterator[SampleClient]:
        """Of this host's heads, and no others."""
        addresses = self._addresses()
        if not addresses:
            raise MeshError(Reason.SERVICE_UNAVAILABLE, "no head of this host answers", retry_after_s=10.0)
        channels = Channels(StaticDiscovery({SERVICE: addresses}))
        try:
            yield SampleClient(channels)
        finally:
            await channels.close()
            await channels.discovery.close()


@asynccontextmanager
async def _taking_in(folder: PictureFolder) -> AsyncIterator[None]:
    """Nothing is removed from the folder meanwhile."""
    taking = folder.taking_in()
    await asyncio.to_thread(taking.__enter__)
    try:
        yield
    finally:
        await asyncio.to_thread(taking.__exit__, None, None, None)


async def _records(source: SampleClient, work: fleet_pb2.CollectWork) -> list[SampleRecord]:
    """The newest first, of each model."""
    most = min(work.max_samples or MAX_RECORDS, MAX_RECORDS)
    found: list[SampleRecord] = []
    models: list[str | None] = [*sorted(set(work.models))] or [None]
    for model in models:
        wanted = Filter(model=model, labelled=None if work.unlabelled else True)
        async with aclosing(source.all(wanted)) as samples:
            async for sample in samples:
                if len(found) >= most:
                    return found
                record = _named(sample.record)
                if record is not None:
                    found.append(record)
    return found


def _named(record: SampleRecord) -> SampleRecord | None:
    """With a label: a person's, else the full model's answer, which the manifest then names as who labelled it; None: neither."""
    if record.label is not None:
        return record
    if record.tail_label is None:
        return None
    by = f"full model {record.model[:40]}:{record.version}"
    return replace(record, label=record.tail_label, labelled_by=by, labelled_at=record.captured_at)
