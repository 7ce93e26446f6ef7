"""Carries the plan of a version on to what is made from the version. Makes and reads no plan."""

from __future__ import annotations

from splitmesh.client.registry import ArtifactRef, RegistryClient, VersionInfo
from splitmesh.model.manifest import MANIFEST, PLAN, Manifest


async def carried_plan(registry: RegistryClient, source: VersionInfo, made: Manifest) -> dict[str, ArtifactRef]:
    """The plan by its artefact name, for a version made from ``source`` and cut as that is; else nothing.

    Raises what verifying and reading ``source`` raises.
    """
    if PLAN not in source.artifacts or made.split is None:
        return {}
    before = Manifest.from_json(await registry.fetch(source, MANIFEST)).split
    if before is None or [set(cut) for cut in before.cuts] != [set(cut) for cut in made.split.cuts]:
        return {}
    return {PLAN: source.artifact(PLAN)}
