"""Datasets in memory: a part of ``memory_store``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from services.registry.metadata.acts import dataset_created, dataset_deleted
from services.registry.metadata.memory_log import MemoryLog
from services.registry.metadata.records import Actor, Dataset, DatasetDraft, DatasetVersion
from services.registry.metadata.refusals import dataset_not_found, version_in_use, version_not_found
from splitmesh.sql.fields import check_fields


@dataclass
class _Dataset:
    create_time: datetime
    latest: int = 0
    versions: dict[int, DatasetVersion] = field(default_factory=dict)
    contents: dict[int, frozenset[str]] = field(default_factory=dict)
    requests: dict[str, int] = field(default_factory=dict)


class MemoryDatasets(MemoryLog):
    """See the port."""

    def __init__(self) -> None:
        super().__init__()
        self._datasets: dict[str, _Dataset] = {}

    async def find_dataset_request(self, dataset: str, request_id: str) -> DatasetVersion | None:
        """See the port."""
        check_fields(dataset=dataset, request_id=request_id)
        found = self._datasets.get(dataset)
        number = found.requests.get(request_id) if found and request_id else None
        return self._dataset_version(dataset, number) if number else None

    async def create_dataset_version(self, draft: DatasetDraft, actor: Actor, create_time: datetime) -> DatasetVersion:
        """See the port."""
        check_fields(draft=draft, actor=actor)
        if first := await self.find_dataset_request(draft.dataset, draft.request_id):
            return first
        if draft.parent and draft.dataset not in self._datasets:
            raise version_not_found("dataset", draft.dataset, draft.parent)
        if draft.parent:
            self._dataset_version(draft.dataset, draft.parent)
        made = self._datasets.setdefault(draft.dataset, _Dataset(create_time))
        made.latest += 1
        made.versions[made.latest] = DatasetVersion(
            dataset=draft.dataset,
            version=made.latest,
            manifest=draft.manifest,
            parent=draft.parent,
            created_by=draft.created_by,
            description=draft.description,
            summary=draft.summary,
            create_time=create_time,
            signatures=(draft.signature,) if draft.signature else (),
        )
        made.contents[made.latest] = frozenset(draft.contents)
        if draft.request_id:
            made.requests[draft.request_id] = made.latest
        self._log(dataset_created(draft, made.latest), actor, create_time)
        return made.versions[made.latest]

    async def get_dataset_version(self, dataset: str, version: int) -> DatasetVersion:
        """See the port."""
        check_fields(dataset=dataset, version=version)
        kept = self._dataset(dataset)
        return self._dataset_version(dataset, version or max(kept.versions, default=kept.latest))

    async def list_datasets(self, after: str, limit: int) -> Sequence[Dataset]:
        """See the port."""
        check_fields(after=after)
        names = sorted(name for name in self._datasets if name > after)[:limit]
        return [Dataset(name, self._datasets[name].latest, self._datasets[name].create_time) for name in names]

    async def list_dataset_versions(self, dataset: str, before: int, limit: int) -> Sequence[DatasetVersion]:
        """See the port."""
        check_fields(dataset=dataset, before=before)
        versions = self._dataset(dataset).versions
        numbers = sorted((one for one in versions if not before or one < before), reverse=True)
        return [versions[number] for number in numbers[:limit]]

    async def delete_dataset_version(
        self, dataset: str, version: int, reason: str, actor: Actor, time: datetime, *, even_if_used: bool
    ) -> None:
        """See the port."""
        check_fields(dataset=dataset, version=version, reason=reason, actor=actor)
        self._dataset_version(dataset, version)
        users = self._users_of(dataset, version)
        if users and not even_if_used:
            raise version_in_use("dataset", dataset, version, users)
        del self._datasets[dataset].versions[version], self._datasets[dataset].contents[version]
        self._log(dataset_deleted(dataset, version, reason, len(users)), actor, time)

    def _users_of(self, dataset: str, version: int) -> list[str]:
        """Model versions whose lineage names it, as ``model solder:3``."""
        raise NotImplementedError

    def _named_by_datasets(self) -> set[str]:
        found: set[str] = set()
        for kept in self._datasets.values():
            found |= {one.manifest.sha256 for one in kept.versions.values()}
            found.update(*kept.contents.values())
        return found

    def _dataset(self, name: str) -> _Dataset:
        found = self._datasets.get(name)
        if found is None:
            raise dataset_not_found(name)
        return found

    def _dataset_version(self, name: str, number: int) -> DatasetVersion:
        kept = self._dataset(name)
        found = kept.versions.get(number)
        if found is None:
            raise version_not_found("dataset", name, number, deleted=1 <= number <= kept.latest)
        return found
