"""Metadata in this process's memory, for tests and in-process meshes; forgets everything at the end."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime

from services.registry.store import (
    MAX_PROFILES,
    AliasMove,
    AliasState,
    Draft,
    Model,
    ProfileRecord,
    Version,
    alias_not_found,
    model_not_found,
    too_many_profiles,
    up_to,
    version_not_found,
)


@dataclass
class _Model:
    versions: list[Version] = field(default_factory=list)
    requests: dict[str, int] = field(default_factory=dict)
    aliases: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Alias to version number and revision."""


class MemoryStore:
    """A :class:`~services.registry.store.MetadataStore`; atomic because nothing in it awaits."""

    def __init__(self) -> None:
        self._models: dict[str, _Model] = {}
        self._profiles: dict[str, dict[str, ProfileRecord]] = {}

    async def start(self) -> None:
        """Nothing to open."""

    async def stop(self) -> None:
        """Nothing to close."""

    async def find_request(self, model: str, request_id: str) -> Version | None:
        """See the port."""
        found = self._models.get(model)
        number = found.requests.get(request_id) if found else None
        return self._version(model, number) if number else None

    async def create_version(self, draft: Draft, create_time: datetime) -> Version:
        """See the port."""
        model = self._models.get(draft.model) or _Model()
        if draft.request_id and (number := model.requests.get(draft.request_id)):
            return self._version(draft.model, number)
        if draft.parent and draft.parent > len(model.versions):
            raise version_not_found(draft.model, draft.parent)
        number = len(model.versions) + 1
        model.versions.append(
            Version(
                model=draft.model,
                version=number,
                parent=draft.parent,
                artifacts=draft.artifacts,
                created_by=draft.created_by,
                description=draft.description,
                create_time=create_time,
            )
        )
        if draft.request_id:
            model.requests[draft.request_id] = number
        self._models[draft.model] = model
        return self._version(draft.model, number)

    async def newest(self, model: str) -> Version:
        """See the port."""
        return self._version(model, len(self._model(model).versions))

    async def get_version(self, model: str, version: int) -> Version:
        """See the port."""
        return self._version(model, version)

    async def version_at(self, model: str, alias: str) -> Version:
        """See the port."""
        number, _ = self._model(model).aliases.get(alias, (0, 0))
        if not number:
            raise alias_not_found(model, alias)
        return self._version(model, number)

    async def list_models(self, after: str, limit: int) -> list[Model]:
        """See the port."""
        names = sorted(name for name in self._models if name > after)[:limit]
        return [
            Model(
                name=name,
                latest_version=len(self._models[name].versions),
                aliases={alias: number for alias, (number, _) in sorted(self._models[name].aliases.items())},
                create_time=self._models[name].versions[0].create_time,
            )
            for name in names
        ]

    async def list_versions(self, model: str, before: int, limit: int) -> list[Version]:
        """See the port."""
        newest = len(self._model(model).versions)
        first = min(newest, before - 1) if before else newest
        return [self._version(model, number) for number in range(first, max(0, first - limit), -1)]

    async def set_alias(self, model: str, alias: str, version: int) -> AliasMove:
        """See the port."""
        self._version(model, version)
        aliases = self._models[model].aliases
        previous, revision = aliases.get(alias, (0, 0))
        if previous != version:
            aliases[alias] = (version, revision + 1)
        return AliasMove(previous, await self.alias_state(model, alias))

    async def alias_state(self, model: str, alias: str) -> AliasState:
        """See the port."""
        found = self._models.get(model)
        number, revision = found.aliases.get(alias, (0, 0)) if found else (0, 0)
        return AliasState(model, alias, self._version(model, number) if number else None, revision)

    async def put_profile(self, record: ProfileRecord) -> None:
        """See the port."""
        kept = self._profiles.setdefault(record.sha256, {})
        if record.key not in kept and len(kept) >= MAX_PROFILES:
            raise too_many_profiles()
        kept[record.key] = record

    async def list_profiles(self, sha256: str, node: str, max_bytes: int | None = None) -> list[ProfileRecord]:
        """See the port."""
        found = [one for one in self._profiles.get(sha256, {}).values() if node in ("", one.node)]
        return up_to(sorted(found, key=lambda one: (one.update_time, one.key), reverse=True), max_bytes)

    def _model(self, name: str) -> _Model:
        found = self._models.get(name)
        if found is None:
            raise model_not_found(name)
        return found

    def _version(self, name: str, number: int) -> Version:
        model = self._model(name)
        if not 1 <= number <= len(model.versions):
            raise version_not_found(name, number)
        aliases = tuple(sorted(alias for alias, (target, _) in model.aliases.items() if target == number))
        return replace(model.versions[number - 1], aliases=aliases)
