"""The rules of versions: how one is made, how long it is kept, and that a change is told.

What makes one complete and sound, ``sound`` knows. Does not know how anything is stored, nor messages on the wire.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from services.registry.check import ModelCheck
from services.registry.content.port import ContentStore
from services.registry.garbage import Pins
from services.registry.metadata.port import MetadataStore
from services.registry.metadata.records import Actor, Draft, Model, Version
from services.registry.metadata.refusals import version_not_found
from services.registry.names import (
    MAX_REASON_CHARS,
    check_alias,
    check_draft,
    check_holder,
    check_model_name,
    check_number,
    check_text,
)
from services.registry.signatures import Signatures
from services.registry.sound import Soundness, require_named
from services.registry.watch import ModelWatch
from splitmesh.errors import field_error
from splitmesh.kernel.pages import from_token, number_from_token, page, page_size, to_token
from splitmesh.model.lineage import Lineage
from splitmesh.model.manifest import MANIFEST
from splitmesh.sql.times import utc_now

MAX_HOLD_S = 10 * 365 * 24 * 3600.0
"""Longest hold that has an end; one without is released by its holder."""
READ_AT_ONCE = 50
"""Versions of a page; one can take half a megabyte where it has many signatures."""


class Versions:
    """Models and versions of one registry.

    Args:
        store: keeps them.
        contents: what they are made of.
        pins: keeps the collector away from what a version is made of.
        check: of each model file.
        signatures: says whose word counts.
        watch: told of what changed.
        max_artifacts: in one version.
        max_page_bytes: of the versions of one page, roughly; a page has one version at least.
        now: the wall clock.
    """

    def __init__(
        self,
        store: MetadataStore,
        contents: ContentStore,
        pins: Pins,
        check: ModelCheck,
        signatures: Signatures,
        watch: ModelWatch,
        *,
        max_artifacts: int,
        max_page_bytes: int,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._store = store
        self._pins = pins
        self._soundness = Soundness(contents, check)
        self._signatures = signatures
        self._watch = watch
        self._max_artifacts = max_artifacts
        self._max_page_bytes = max_page_bytes
        self._now = now
        self._writing: set[asyncio.Task[Version]] = set()

    async def start(self) -> None:
        """Nothing to begin with."""

    async def stop(self) -> None:
        """Waits for what was accepted."""
        await asyncio.gather(*self._writing, return_exceptions=True)

    async def create(self, draft: Draft, envelope: bytes, actor: Actor) -> Version:
        """The new version, or the one this request made first.

        Raises:
            MeshError: FIELD_INVALID, MODEL_INCOMPLETE, ARTIFACT_NOT_FOUND, MODEL_NOT_FOUND, VERSION_NOT_FOUND or
                DATASET_NOT_FOUND (of its lineage, or of the versions that it runs with), SIGNATURE_MISSING,
                SIGNATURE_INVALID, KEY_UNKNOWN, KEY_REVOKED,
                STORAGE_FULL, or what is wrong with a model file: MODEL_CORRUPT, MODEL_EXTERNAL_DATA, MODEL_TOO_LARGE,
                MODEL_OPERATOR_UNSUPPORTED, MODEL_SHAPE_UNKNOWN.
        """
        check_draft(draft, self._max_artifacts)
        if draft.request_id and (first := await self._store.find_request(draft.model, draft.request_id)):
            return first
        require_named([MANIFEST], {artifact.name: artifact for artifact in draft.artifacts}, "a version needs")
        if draft.parent:
            await self._store.get_version(draft.model, draft.parent)
        await self._require_lineage(draft.lineage)
        signed = await self._signatures.check_version(draft, envelope)
        actor = replace(actor, key_ids=signed.key_ids)
        async with self._pins.hold({artifact.sha256 for artifact in draft.artifacts}) as pin:
            needs = await self._soundness.require(draft)
            draft = replace(draft, signature=signed.signature, needs=needs)
            # A caller that hangs up cannot stop the write, and the contents must stay until it is done.
            writing = asyncio.create_task(self._store.create_version(draft, actor, self._now()))
            pin.keep_until(writing)
            self._writing.add(writing)
            writing.add_done_callback(self._writing.discard)
            return await asyncio.shield(writing)

    async def get(self, model: str, *, version: int | None = None, alias: str | None = None) -> Version:
        """By number, by alias, or the newest; MODEL_NOT_FOUND, VERSION_NOT_FOUND, ALIAS_NOT_FOUND."""
        check_model_name(model)
        if alias is not None:
            check_alias(alias)
            return await self._store.version_at(model, alias)
        if version is not None:
            check_number("version", version)
            return await self._store.get_version(model, version)
        return await self._store.newest(model)

    async def list_models(self, asked: int, token: str) -> tuple[Sequence[Model], str]:
        """One page by name, and the token of the next, empty after the last."""
        size = page_size(asked)
        found = await self._store.list_models(from_token("models", token), size + 1)
        return page("models", found, size, lambda model: model.name)

    async def list_versions(self, model: str, asked: int, token: str) -> tuple[Sequence[Version], str]:
        """One page, newest first, and the token of the next, empty after the last; MODEL_NOT_FOUND.

        A page is shorter than asked where its versions are large.
        """
        check_model_name(model)
        size, kind = page_size(asked), f"versions:{model}"
        before, room, found = number_from_token(kind, token), self._max_page_bytes, list[Version]()
        while len(found) < size:
            wanted = min(READ_AT_ONCE, size - len(found))
            versions = await self._store.list_versions(model, before, wanted + 1)
            for version in versions[:wanted]:
                room -= _weight(version)
                if room < 0 and found:
                    return found, to_token(kind, str(found[-1].version))
                found.append(version)
            if len(versions) <= wanted:
                return found, ""
            before = found[-1].version
        return found, to_token(kind, str(before))

    async def delete(self, model: str, version: int, reason: str, actor: Actor) -> None:
        """Takes a version away; MODEL_NOT_FOUND, VERSION_NOT_FOUND, VERSION_IN_USE."""
        _check_subject(model, version)
        check_text("deleted_by", actor.by)
        check_text("reason", reason, MAX_REASON_CHARS)
        await self._store.delete_version(model, version, reason, actor, self._now())
        self._watch.changed(model)

    async def hold(self, model: str, version: int, hold_s: float, actor: Actor) -> None:
        """Keeps a version for the actor, 0 seconds: until released; MODEL_NOT_FOUND, VERSION_NOT_FOUND, STORAGE_FULL."""
        _check_subject(model, version)
        check_holder(actor.by)
        if not (math.isfinite(hold_s) and 0 <= hold_s <= MAX_HOLD_S):
            raise field_error("hold_s", f"{hold_s} is not from 0 to {MAX_HOLD_S:g}")
        now = self._now()
        until = now + timedelta(seconds=hold_s) if hold_s else None
        await self._store.hold_version(model, version, actor.by, until, actor, now)
        self._watch.changed(model)

    async def release(self, model: str, version: int, actor: Actor) -> None:
        """The actor needs it no more; MODEL_NOT_FOUND, VERSION_NOT_FOUND."""
        _check_subject(model, version)
        check_holder(actor.by)
        await self._store.release_version(model, version, actor.by, actor, self._now())
        self._watch.changed(model)

    async def sign(self, model: str, version: int, envelope: bytes, actor: Actor) -> None:
        """Adds a signature, in place of an earlier one of its key.

        MODEL_NOT_FOUND, VERSION_NOT_FOUND, SIGNATURE_INVALID, KEY_UNKNOWN, KEY_REVOKED, STORAGE_FULL.
        """
        _check_subject(model, version)
        signed = await self._signatures.check_added(await self._store.get_version(model, version), envelope)
        if signed.signature is None:
            raise AssertionError("a signature that was checked is there")
        signer = replace(actor, key_ids=signed.key_ids)
        await self._store.add_signature(model, version, signed.signature, signer, self._now())
        self._watch.changed(model)

    async def _require_lineage(self, lineage: Lineage) -> None:
        for parent in lineage.parents:
            await self._store.get_version(parent.model, parent.version)
        for index, use in enumerate(lineage.datasets):
            known = await self._store.get_dataset_version(use.dataset, use.version)
            if known.manifest.sha256 != use.sha256:
                raise field_error(
                    f"lineage.datasets[{index}].sha256",
                    f"version {use.version} of dataset {use.dataset!r} has another manifest, {known.manifest.sha256}",
                )


def _check_subject(model: str, version: int) -> None:
    check_model_name(model)
    check_number("version", version)
    if not version:
        raise version_not_found("model", model, version)


def _weight(version: Version) -> int:
    """Bytes of it as a message, roughly, and rather too many."""
    envelopes = sum(len(one.envelope) + 100 for one in version.signatures)
    lineage, names = len(version.lineage.to_json()), sum(len(one.name) + 100 for one in version.artifacts)
    return 1000 + 4 * len(version.description) + lineage + names + envelopes + 128 * len(version.holders)
