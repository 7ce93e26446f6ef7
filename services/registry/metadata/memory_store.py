"""Metadata in this process's memory, for tests and in-process meshes; forgets everything at the end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime

from services.registry.metadata import acts
from services.registry.metadata.memory_datasets import MemoryDatasets
from services.registry.metadata.memory_model import MemoryModel
from services.registry.metadata.port import Removal
from services.registry.metadata.records import (
    Actor,
    AliasChange,
    AliasMove,
    Draft,
    Model,
    Signature,
    Version,
)
from services.registry.metadata.refusals import (
    MAX_HOLDERS,
    MAX_SIGNATURES,
    alias_moved,
    alias_not_found,
    model_not_found,
    too_many_holders,
    too_many_signatures,
    version_in_use,
    version_not_found,
)
from splitmesh.model.lineage import VersionName
from splitmesh.sql.fields import check_fields
from splitmesh.sql.times import utc_now


class MemoryStore(MemoryDatasets):
    """A :class:`~services.registry.metadata.port.MetadataStore`; atomic because nothing in it awaits anything that waits."""

    def __init__(self, *, now: Callable[[], datetime] = utc_now) -> None:
        super().__init__()
        self._now = now
        self._models: dict[str, MemoryModel] = {}
        self._moves: list[AliasMove] = []

    async def start(self) -> None:
        """Nothing to open."""

    async def stop(self) -> None:
        """Nothing to close."""

    async def find_request(self, model: str, request_id: str) -> Version | None:
        """See the port."""
        check_fields(model=model, request_id=request_id)
        found = self._models.get(model)
        number = found.requests.get(request_id) if found and request_id else None
        return self._version(model, number) if number else None

    async def create_version(self, draft: Draft, actor: Actor, create_time: datetime) -> Version:
        """See the port."""
        check_fields(draft=draft, actor=actor)
        if first := await self.find_request(draft.model, draft.request_id):
            return first
        self._check_origin(draft)
        model = self._models.setdefault(draft.model, MemoryModel(create_time))
        model.latest += 1
        model.versions[model.latest] = Version(
            model=draft.model,
            version=model.latest,
            parent=draft.parent,
            artifacts=draft.artifacts,
            created_by=draft.created_by,
            description=draft.description,
            create_time=create_time,
            lineage=draft.lineage,
        )
        model.signatures[model.latest] = {draft.signature.key_id: draft.signature} if draft.signature else {}
        model.holds[model.latest] = {}
        model.needs[model.latest] = draft.needs
        if draft.request_id:
            model.requests[draft.request_id] = model.latest
        self._log(acts.version_created(draft, model.latest), actor, create_time)
        return self._version(draft.model, model.latest)

    async def newest(self, model: str) -> Version:
        """See the port."""
        check_fields(model=model)
        found = self._model(model)
        return self._version(model, max(found.versions, default=found.latest))

    async def get_version(self, model: str, version: int) -> Version:
        """See the port."""
        check_fields(model=model, version=version)
        return self._version(model, version)

    async def version_at(self, model: str, alias: str) -> Version:
        """See the port."""
        check_fields(model=model, alias=alias)
        move = self._model(model).aliases.get(alias)
        if move is None:
            raise alias_not_found(model, alias)
        return self._version(model, move.version)

    async def list_models(self, after: str, limit: int) -> list[Model]:
        """See the port."""
        check_fields(after=after)
        names = sorted(name for name in self._models if name > after)[:limit]
        return [self._as_model(name, self._models[name]) for name in names]

    async def list_versions(self, model: str, before: int, limit: int) -> list[Version]:
        """See the port."""
        check_fields(model=model, before=before)
        numbers = sorted((one for one in self._model(model).versions if not before or one < before), reverse=True)
        return [self._version(model, number) for number in numbers[:limit]]

    async def add_signature(self, model: str, version: int, signature: Signature, actor: Actor, time: datetime) -> None:
        """See the port."""
        check_fields(model=model, version=version, signature=signature, actor=actor)
        self._version(model, version)
        kept = self._models[model].signatures[version]
        if kept.get(signature.key_id) == signature:
            return
        if signature.key_id not in kept and len(kept) >= MAX_SIGNATURES:
            raise too_many_signatures()
        kept[signature.key_id] = signature
        self._log(acts.version_signed(model, version, signature.key_id), actor, time)

    async def hold_version(
        self, model: str, version: int, holder: str, until: datetime | None, actor: Actor, time: datetime
    ) -> None:
        """See the port."""
        check_fields(model=model, version=version, holder=holder, actor=actor)
        self._version(model, version)
        holding = self._models[model].holding(version, time)
        if holder not in holding and len(holding) >= MAX_HOLDERS:
            raise too_many_holders()
        kept = self._models[model].holds[version]
        self._models[model].holds[version] = {**{one: kept[one] for one in holding}, holder: until}
        if holder not in holding:
            self._log(acts.version_held(model, version, holder, until), actor, time)

    async def release_version(self, model: str, version: int, holder: str, actor: Actor, time: datetime) -> None:
        """See the port."""
        check_fields(model=model, version=version, holder=holder, actor=actor)
        self._version(model, version)
        held = holder in self._models[model].holding(version, time)
        self._models[model].holds[version].pop(holder, None)
        if held:
            self._log(acts.version_released(model, version, holder), actor, time)

    async def delete_version(self, model: str, version: int, reason: str, actor: Actor, time: datetime) -> None:
        """See the port."""
        check_fields(model=model, version=version, reason=reason, actor=actor)
        self._version(model, version)
        kept = self._models[model]
        users = [f"alias {alias}" for alias in kept.pointing_at(version)]
        users += [f"holder {holder}" for holder in kept.holding(version, time)]
        users += self._needing(VersionName(model, version))
        if users:
            raise version_in_use("model", model, version, users)
        del kept.versions[version], kept.signatures[version], kept.holds[version], kept.needs[version]
        self._log(acts.version_deleted(model, version, reason), actor, time)

    async def without_needs(self, artifact: str, after: VersionName, limit: int) -> list[tuple[VersionName, str]]:
        """See the port."""
        check_fields(artifact=artifact, after=after)
        found = [
            (VersionName(name, number), one.sha256)
            for name, model in sorted(self._models.items())
            for number, version in sorted(model.versions.items())
            for one in version.artifacts
            if one.name == artifact and not model.needs[number] and (name, number) > (after.model, after.version)
        ]
        return found[:limit]

    async def set_needs(self, model: str, version: int, needs: Sequence[VersionName]) -> None:
        """See the port."""
        check_fields(model=model, version=version, needs=needs)
        self._version(model, version)
        there = [one for one in needs if one.model in self._models and one.version in self._models[one.model].versions]
        self._models[model].needs[version] = tuple(there)

    async def set_alias(self, change: AliasChange, actor: Actor, time: datetime) -> AliasMove:
        """See the port."""
        check_fields(change=change, actor=actor)
        model = self._model(change.model)
        if change.version:
            self._version(change.model, change.version)
        last = model.aliases.get(change.alias)
        previous = last.version if last else 0
        if change.expected is not None and change.expected != previous:
            raise alias_moved(change.model, change.alias, change.expected, previous)
        if last is None and not change.version:
            raise alias_not_found(change.model, change.alias)
        if last is not None and previous == change.version:
            return last
        sequence = len(self._moves) + 1
        move = AliasMove(sequence, change.model, change.alias, previous, change.version, actor.by, change.reason, time)
        self._moves.append(move)
        if change.version:
            model.aliases[change.alias] = move
        else:
            del model.aliases[change.alias]
        self._log(acts.alias_moved(change, previous), actor, time)
        return move

    async def alias_moves_after(self, model: str, alias: str, after: int, limit: int) -> Sequence[AliasMove]:
        """See the port."""
        check_fields(model=model, alias=alias, after=after)
        return [move for move in self._moves_of(model, alias) if move.sequence > after][:limit]

    async def alias_moves_before(self, model: str, alias: str, before: int, limit: int) -> Sequence[AliasMove]:
        """See the port."""
        check_fields(model=model, alias=alias, before=before)
        self._model(model)
        found = [move for move in self._moves_of(model, alias) if not before or move.sequence < before]
        return found[::-1][:limit]

    async def alias_states(self, model: str, alias: str) -> tuple[Sequence[AliasMove], int]:
        """See the port."""
        check_fields(model=model, alias=alias)
        found = self._models.get(model)
        moves = found.aliases.values() if found else ()
        return sorted((one for one in moves if alias in ("", one.alias)), key=lambda one: one.sequence), len(
            self._moves
        )

    async def unused(self, sha256s: Sequence[str]) -> set[str]:
        """See the port."""
        check_fields(sha256s=sha256s)
        versions = (version for model in self._models.values() for version in model.versions.values())
        named = {artifact.sha256 for version in versions for artifact in version.artifacts}
        return set(sha256s) - named - self._named_by_datasets()

    @asynccontextmanager
    async def removing(self, sha256s: Sequence[str]) -> AsyncIterator[Removal]:
        """See the port."""

        async def check() -> None:
            """Nobody else has this memory."""

        yield Removal(frozenset(await self.unused(sha256s)), check)

    def _check_origin(self, draft: Draft) -> None:
        if draft.parent and draft.model not in self._models:
            raise version_not_found("model", draft.model, draft.parent)
        if draft.parent:
            self._version(draft.model, draft.parent)
        for parent in draft.lineage.parents:
            self._version(parent.model, parent.version)
        for use in draft.lineage.datasets:
            self._dataset_version(use.dataset, use.version)
        for need in draft.needs:
            self._version(need.model, need.version)

    def _needing(self, needed: VersionName) -> list[str]:
        kept = ((name, model.needs) for name, model in sorted(self._models.items()))
        return [f"model {name}:{one}" for name, needs in kept for one in sorted(needs) if needed in needs[one]]

    def _users_of(self, dataset: str, version: int) -> list[str]:
        versions = (one for _, model in sorted(self._models.items()) for _, one in sorted(model.versions.items()))
        return [
            f"model {one.model}:{one.version}"
            for one in versions
            if any((use.dataset, use.version) == (dataset, version) for use in one.lineage.datasets)
        ]

    def _moves_of(self, model: str, alias: str) -> list[AliasMove]:
        return [move for move in self._moves if move.model == model and alias in ("", move.alias)]

    def _as_model(self, name: str, model: MemoryModel) -> Model:
        aliases = {alias: move.version for alias, move in sorted(model.aliases.items())}
        return Model(name, model.latest, aliases, model.create_time)

    def _model(self, name: str) -> MemoryModel:
        found = self._models.get(name)
        if found is None:
            raise model_not_found(name)
        return found

    def _version(self, name: str, number: int) -> Version:
        model = self._model(name)
        found = model.versions.get(number)
        if found is None:
            raise version_not_found("model", name, number, deleted=1 <= number <= model.latest)
        return replace(
            found,
            aliases=model.pointing_at(number),
            signatures=tuple(one for _, one in sorted(model.signatures[number].items())),
            holders=model.holding(number, self._now()),
        )
