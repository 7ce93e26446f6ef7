"""One compression from end to end: fetch the version, apply the recipe in a child process, register what came out.

Knows the registry and the job runner; the recipe itself is ``splitmesh.compress``, states and waiting are ``runs.py``.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from services.compressor.config import CompressorSettings
from services.compressor.samples import below, find_folder, fingerprint
from services.compressor.store import Request, Store
from splitmesh.client.artifacts import TRIES
from splitmesh.client.plans import carried_plan
from splitmesh.client.registry import ArtifactRef, RegistryClient, VersionInfo
from splitmesh.client.repeated import create_repeatable
from splitmesh.client.transfer import Patience, is_passing
from splitmesh.compress.child import Result, run_in
from splitmesh.compress.kept import storage_errors
from splitmesh.compress.needs import check
from splitmesh.compress.recipe import Recipe, step_text
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.kernel.jobs import Progress, run_job
from splitmesh.model.lineage import Lineage
from splitmesh.model.manifest import CALIBRATION, MANIFEST, REPORT, Manifest

CREATED_BY = "compressor"
FETCHED, APPLIED = 0.03, 0.97
"""Shares of the whole progress; the rest is registering."""

MAX_DESCRIPTION = 1000
"""Characters of a version's description; the registry refuses longer ones, which would be after all the work."""

T = TypeVar("T")


class Compressor:
    """Applies recipes to registered versions."""

    def __init__(self, registry: RegistryClient, store: Store, settings: CompressorSettings) -> None:
        self._registry = registry
        self._store = store
        self._settings = settings

    async def check(self, model: str, version: int, recipe: Recipe, calibration_folder: str) -> Request:
        """The request, when the recipe can be applied to the version.

        Raises FIELD_INVALID, MODEL_NOT_FOUND, VERSION_NOT_FOUND, MODEL_INCOMPLETE, EXTRA_MISSING and what else
        ``compress.needs.check`` raises.
        """
        if version < 1:
            raise field_error("version", "is 0; versions count from 1")
        samples = await asyncio.to_thread(self._samples, calibration_folder) if calibration_folder else ""
        info = await self._registry.get_version(model, version)
        check(Manifest.from_json(await self._registry.fetch(info, MANIFEST)), recipe)
        if not calibration_folder and CALIBRATION not in info.artifacts:
            raise MeshError(
                Reason.MODEL_INCOMPLETE,
                f"version {version} of {model!r} has no {CALIBRATION}; push it with the model, or name a folder of samples",
            )
        return Request(
            compression_id=compression_id(info.model, info.version, recipe, calibration_folder, samples),
            model=info.model,
            version=info.version,
            recipe=recipe,
            calibration_folder=calibration_folder,
            create_time=datetime.now(UTC),
        )

    async def apply(self, request: Request, progress: Progress) -> Result:
        """Everything but the registering. Raises the recipe's and the registry's MeshErrors; steps done stay done."""
        identifier = request.compression_id
        source = self._store.source(identifier)
        progress("fetch the version", 0.0)
        info = await self._patiently(lambda: self._registry.get_version(request.model, request.version))
        manifest = Manifest.from_json(await self._registry.fetch(info, MANIFEST))
        if request.calibration_folder:
            calibration = find_folder(self._settings.samples_dir, request.calibration_folder)
        else:
            calibration = source / CALIBRATION
        names = [MANIFEST, *manifest.artifacts(), *([] if request.calibration_folder else [CALIBRATION])]
        for name in names:
            await self._fetch(info, name, source / name)
        try:
            return await run_job(
                run_in,
                str(self._store.run(identifier)),
                str(source),
                str(calibration),
                request.recipe.model_dump_json(),
                f"{request.model}:{request.version}",
                self._settings.threads,
                deadline_s=self._settings.job_deadline_s,
                max_memory_bytes=self._settings.max_job_memory_bytes,
                on_progress=lambda step, share: progress(step, FETCHED + (APPLIED - FETCHED) * share),
            )
        except MeshError as error:
            raise below(self._settings.samples_dir, error) from error

    async def register(self, request: Request, result: Result) -> tuple[int, bytes]:
        """The new version and its report; the same again when it is there already."""
        info = await self._patiently(lambda: self._registry.get_version(request.model, request.version))
        # What goes on with the new version is signed with it, so it must be of a version that may be used.
        info = await self._patiently(lambda: self._registry.verify(info))
        made = await create_repeatable(
            self._registry,
            request.model,
            {**result.files, **await self._carried(info, result)},
            parent=request.version,
            created_by=CREATED_BY,
            description=_description(request),
            request_id=request.compression_id,
            lineage=lineage_of(request, result, info),
        )
        # Read back: a repeated request returns the version made first, with its own report.
        return made.version, await self._registry.fetch(made, REPORT)

    async def stands(self, request: Request, version: int) -> bool:
        """Whether the version that a compression made is still there."""
        try:
            await self._registry.get_version(request.model, version)
        except MeshError as error:
            if error.reason not in (Reason.MODEL_NOT_FOUND, Reason.VERSION_NOT_FOUND):
                raise
            return False
        return True

    async def _carried(self, info: VersionInfo, result: Result) -> dict[str, ArtifactRef]:
        """Samples go on with their version; those of a folder are nobody's but this machine's. The plan goes on with its cut."""
        made = Manifest.from_json(await asyncio.to_thread(result.files[MANIFEST].read_bytes))
        samples = {CALIBRATION: info.artifact(CALIBRATION)} if CALIBRATION in info.artifacts else {}
        return {**samples, **await carried_plan(self._registry, info, made)}

    def _samples(self, name: str) -> str:
        folder = find_folder(self._settings.samples_dir, name)
        return fingerprint(self._settings.samples_dir or folder, folder)

    async def _fetch(self, info: VersionInfo, name: str, path: Path) -> None:
        """One artefact as a file, unless it is there already."""
        ref = info.artifacts.get(name)
        if ref is None:
            raise MeshError(
                Reason.MODEL_INCOMPLETE,
                f"version {info.version} of {info.model!r} has no {name!r}",
                metadata={"missing": name},
            )
        if await asyncio.to_thread(_prepared, path, ref.sha256):
            return
        await self._registry.pull_to_file(ref, path)

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """After a restart of the whole machine the registry may take longer than we do."""
        patience = Patience(tries=TRIES)
        while True:
            try:
                return await call()
            except MeshError as error:
                if not is_passing(error):
                    raise
                await patience.after(error)


def compression_id(model: str, version: int, recipe: Recipe, calibration_folder: str, samples: str) -> str:
    """The same for the same work: a repeated request joins the first, and its version is made once.

    ``samples``: fingerprint of the folder, empty without one.
    """
    key = json.dumps([model, version, recipe.digest(), calibration_folder, samples])
    return f"compression-{hashlib.sha256(key.encode()).hexdigest()[:32]}"


def lineage_of(request: Request, result: Result, info: VersionInfo) -> Lineage:
    """Of the version that is made; with the datasets behind the source's own samples, where the recipe used those."""
    lineage = result.lineage(request.recipe, request.compression_id)
    return lineage if request.calibration_folder else replace(lineage, datasets=info.lineage.datasets_as("calibration"))


def _description(request: Request) -> str:
    """Names of tensors can be long; the report has them in full."""
    text = f"version {request.version} with {', '.join(step_text(step) for step in request.recipe.steps)}"
    return text if len(text) <= MAX_DESCRIPTION else f"{text[: MAX_DESCRIPTION - 1]}…"


def _prepared(path: Path, sha256: str) -> bool:
    """Makes the folder; whether the file is there and whole."""
    with storage_errors():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256
