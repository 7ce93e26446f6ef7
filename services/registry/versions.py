"""The rules of versions and aliases: what makes a version complete and sound, and that a move is told to watchers.

Knows the order of the checks, cheap ones first. Does not know how anything is stored, nor messages on the wire.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from services.registry.blobs import BlobFolder
from services.registry.check import ModelCheck
from services.registry.names import check_alias, check_draft, check_model_name
from services.registry.pages import from_token, page_size, to_token
from services.registry.store import AliasMove, Artifact, Draft, MetadataStore, Model, Version
from services.registry.watch import AliasWatch
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.model.manifest import MANIFEST, MAX_MANIFEST_BYTES, Manifest


def utc_now() -> datetime:
    """The wall clock."""
    return datetime.now(UTC)


class Versions:
    """Models, versions and aliases of one registry."""

    def __init__(
        self,
        store: MetadataStore,
        blobs: BlobFolder,
        check: ModelCheck,
        watch: AliasWatch,
        *,
        max_artifacts: int,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._check = check
        self._watch = watch
        self._max_artifacts = max_artifacts
        self._now = now
        self._moves: set[asyncio.Task[AliasMove]] = set()

    async def create(self, draft: Draft) -> Version:
        """The new version, or the one this request made first.

        Raises:
            MeshError: FIELD_INVALID, MODEL_INCOMPLETE, ARTIFACT_NOT_FOUND, MODEL_NOT_FOUND or VERSION_NOT_FOUND (of the
                parent), STORAGE_FULL, or what is wrong with a model file: MODEL_CORRUPT, MODEL_EXTERNAL_DATA,
                MODEL_TOO_LARGE, MODEL_OPERATOR_UNSUPPORTED, MODEL_SHAPE_UNKNOWN.
        """
        check_draft(draft, self._max_artifacts)
        if draft.request_id and (first := await self._store.find_request(draft.model, draft.request_id)):
            return first
        if draft.parent:
            await self._store.get_version(draft.model, draft.parent)
        parts = {artifact.name: artifact for artifact in draft.artifacts}
        _require([MANIFEST], parts, "a version needs")
        for artifact in draft.artifacts:
            await self._require_stored(artifact)
        manifest = await self._manifest(parts[MANIFEST])
        named = [segment.artifact for segment in manifest.segments()]
        _require(manifest.artifacts(), parts, "the manifest names")
        for name in sorted(parts.keys() & ({name for name in parts if name.lower().endswith(".onnx")} | set(named))):
            sha256 = parts[name].sha256
            await self._check.check(name, sha256, self._blobs.path_of(sha256))
        return await self._store.create_version(draft, self._now())

    async def get(self, model: str, *, version: int | None = None, alias: str | None = None) -> Version:
        """By number, by alias, or the newest; MODEL_NOT_FOUND, VERSION_NOT_FOUND, ALIAS_NOT_FOUND."""
        check_model_name(model)
        if alias is not None:
            check_alias(alias)
            return await self._store.version_at(model, alias)
        if version is not None:
            return await self._store.get_version(model, version)
        return await self._store.newest(model)

    async def list_models(self, asked: int, token: str) -> tuple[Sequence[Model], str]:
        """One page by name, and the token of the next, empty after the last."""
        size = page_size(asked)
        found = await self._store.list_models(from_token("models", token), size + 1)
        return found[:size], to_token("models", found[size - 1].name) if len(found) > size else ""

    async def list_versions(self, model: str, asked: int, token: str) -> tuple[Sequence[Version], str]:
        """One page, newest first, and the token of the next, empty after the last; MODEL_NOT_FOUND."""
        check_model_name(model)
        size, kind = page_size(asked), f"versions:{model}"
        before = from_token(kind, token) or "0"
        if not (before.isascii() and before.isdigit() and len(before) <= 10):
            raise field_error("page_token", "was not made by this registry")
        found = await self._store.list_versions(model, int(before), size + 1)
        return found[:size], to_token(kind, str(found[size - 1].version)) if len(found) > size else ""

    async def set_alias(self, model: str, alias: str, version: int) -> AliasMove:
        """Moves an alias and tells the watchers; MODEL_NOT_FOUND, VERSION_NOT_FOUND."""
        check_model_name(model)
        check_alias(alias)
        # A caller that hangs up in the middle cannot stop the write; watchers must hear of it all the same.
        move = asyncio.create_task(self._store.set_alias(model, alias, version))
        self._moves.add(move)
        move.add_done_callback(self._told)
        return await asyncio.shield(move)

    def _told(self, move: asyncio.Task[AliasMove]) -> None:
        self._moves.discard(move)
        if not move.cancelled() and move.exception() is None:
            self._watch.offer(move.result().state)

    async def _require_stored(self, artifact: Artifact) -> None:
        size_bytes = await self._blobs.size_of(artifact.sha256)
        if size_bytes != artifact.size_bytes:
            raise field_error(
                "artifacts", f"{artifact.name} is said to have {artifact.size_bytes} bytes but has {size_bytes}"
            )

    async def _manifest(self, artifact: Artifact) -> Manifest:
        # One byte more than allowed is enough for the manifest's own check to refuse it.
        text = await self._blobs.read(artifact.sha256, 0, MAX_MANIFEST_BYTES + 1)
        return await asyncio.to_thread(Manifest.from_json, text)


def _require(names: Sequence[str], parts: dict[str, Artifact], why: str) -> None:
    missing = [name for name in names if name not in parts]
    if missing:
        raise MeshError(
            Reason.MODEL_INCOMPLETE,
            f"{why} {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not among the artefacts",
            metadata={"missing": ",".join(missing)},
        )
