"""One compression from end to end: fetch the version, apply the recipe in a child process, register what came out.

Knows the registry and the job runner; the recipe itself is `compress.py`, states and waiting are `runs.py`.
"""

from __future__ import annotations

import hashlib
import json

from services.compressor.compress import Recipe, compress, require_split
from services.compressor.config import CompressorSettings
from services.compressor.report import Report
from splitmesh.client.registry import RegistryClient, VersionInfo
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.kernel.jobs import Progress, run_job
from splitmesh.model.manifest import CALIBRATION, MANIFEST, REPORT, Manifest

CREATED_BY = "compressor"
JOB_SHARE = 0.8
"""Of the whole progress; the rest is fetching and registering."""


class Compressor:
    """Applies recipes to registered versions."""

    def __init__(self, registry: RegistryClient, settings: CompressorSettings) -> None:
        self._registry = registry
        self._settings = settings

    async def check(self, model: str, version: int, recipe: Recipe) -> VersionInfo:
        """The version, when the recipe can be applied to it.

        Raises FIELD_INVALID for an empty recipe or version 0, MODEL_NOT_FOUND, VERSION_NOT_FOUND, MODEL_INCOMPLETE.
        """
        if not (recipe.quantise_cut or recipe.attach_exit):
            raise field_error("recipe", "asks for nothing; set quantise_cut, attach_exit or both")
        if version < 1:
            raise field_error("version", "is 0; versions count from 1")
        info = await self._registry.get_version(model, version)
        manifest = Manifest.from_json(await self._registry.fetch(info, MANIFEST))
        require_split(manifest)
        if recipe.attach_exit and not manifest.labels:
            raise MeshError(Reason.MODEL_INCOMPLETE, "an exit needs a model that names classes; this one has no labels")
        if CALIBRATION not in info.artifacts:
            raise MeshError(
                Reason.MODEL_INCOMPLETE, f"version {version} of {model!r} has no {CALIBRATION}; push it with the model"
            )
        return info

    async def apply(self, info: VersionInfo, recipe: Recipe, progress: Progress) -> tuple[int, Report]:
        """The new version and its report. Raises the recipe's and the registry's MeshErrors, nothing registered."""
        progress("fetch the version", 0.0)
        about = await self._registry.fetch(info, MANIFEST)
        names = [segment.artifact for segment in Manifest.from_json(about).segments()]
        artifacts = {MANIFEST: about, **{name: await self._registry.fetch(info, name) for name in names}}
        calibration = await self._registry.fetch(info, CALIBRATION)
        made = await run_job(
            compress,
            artifacts,
            calibration,
            recipe,
            self._settings.holdout_share,
            self._settings.seed,
            deadline_s=self._settings.job_deadline_s,
            max_memory_bytes=self._settings.max_job_memory_bytes,
            on_progress=lambda step, share: progress(step, 0.1 + JOB_SHARE * share),
        )
        progress("register the version", 0.1 + JOB_SHARE)
        steps = [name for name, wanted in (("int8 cut", recipe.quantise_cut), ("exit", recipe.attach_exit)) if wanted]
        version = await self._registry.create_version(
            info.model,
            {**made, CALIBRATION: calibration},
            parent=info.version,
            created_by=CREATED_BY,
            description=f"version {info.version} with {' and '.join(steps)}",
            request_id=compression_id(info.model, info.version, recipe),
        )
        # Read back: a repeated request returns the version made first, with its own report.
        return version.version, Report.from_json(await self._registry.fetch(version, REPORT))


def compression_id(model: str, version: int, recipe: Recipe) -> str:
    """The same for the same work: a repeated request joins the first, and its version is made once."""
    key = json.dumps([model, version, recipe.quantise_cut, recipe.attach_exit])
    return f"compression-{hashlib.sha256(key.encode()).hexdigest()[:32]}"
