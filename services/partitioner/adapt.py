"""Versions that a head runs in several ways: checks that they belong together and says what each is expected to cost."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence

from services.partitioner.config import PartitionerSettings
from services.partitioner.partition import Partitioner
from splitmesh.client.registry import RegistryClient, VersionInfo
from splitmesh.client.repeated import create_repeatable
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.model.alternatives import ALTERNATIVES, MAX_ALTERNATIVES, Alternative, AlternativeSet
from splitmesh.model.known_facts import crossing_codec, with_manifest_facts
from splitmesh.model.lineage import Lineage, VersionName, program_version
from splitmesh.model.manifest import MANIFEST, OUTCOMES, Manifest
from splitmesh.model.outcomes import CalibrationOutcomes
from splitmesh.model.plan_options import Link
from splitmesh.model.profile_data import CutProfile, Profile
from splitmesh.routing.threshold import choose_threshold

CREATED_BY = "partitioner"


class Adapter:
    """Makes versions with alternatives."""

    def __init__(self, registry: RegistryClient, partitioner: Partitioner, settings: PartitionerSettings) -> None:
        self._registry = registry
        self._partitioner = partitioner
        self._settings = settings

    async def adapt(self, model: str, versions: Sequence[int], link: Link) -> int:
        """The number of the version that stands for all of these, the first one being where a head begins.

        Raises FIELD_INVALID for a list that does not fit together, what the registry raises, and what profiling raises
        where the whole model has no profile yet.
        """
        if not 2 <= len(versions) <= MAX_ALTERNATIVES or len(set(versions)) != len(versions):
            raise field_error("versions", f"name 2 to {MAX_ALTERNATIVES} versions, each once")
        infos = [await self._registry.verify(await self._registry.get_version(model, number)) for number in versions]
        manifests = [await self._manifest(info) for info in infos]
        wholes = (info.artifacts[about.whole.artifact] for info, about in zip(infos, manifests, strict=True))
        if len({ref.sha256 for ref in wholes}) != 1:
            raise field_error("versions", "were not made from the same whole model")
        if any(manifest.split is not None and manifest.split.middle for manifest in manifests):
            raise field_error("versions", "name a chain of more than two segments, whose later links no head measures")
        if sum(manifest.split is None for manifest in manifests) > 1:
            raise field_error("versions", "name two that are not split")
        profile = await self._partitioner.profile(model, versions[0], 0.0, renew=False)
        entries = [
            await self._alternative(0 if index == 0 else info.version, info, manifest, profile)
            for index, (info, manifest) in enumerate(zip(infos, manifests, strict=True))
        ]
        listed = AlternativeSet(alternatives=tuple(entries), uplink_mbps=link.uplink_mbps, rtt_ms=link.rtt_ms)
        key = json.dumps([model, list(versions), link.uplink_mbps, link.rtt_ms])
        made = await create_repeatable(
            self._registry,
            model,
            {**infos[0].artifacts, ALTERNATIVES: listed.to_json().encode()},
            parent=versions[0],
            created_by=CREATED_BY,
            description=f"adapts among the versions {', '.join(map(str, versions))}",
            request_id=f"adapt-{hashlib.sha256(key.encode()).hexdigest()[:32]}",
            lineage=Lineage(
                parents=tuple(VersionName(model, number) for number in versions[1:]),
                datasets=infos[0].lineage.datasets_as("calibration"),
                code_version=program_version(),
            ),
        )
        return made.version

    async def _alternative(self, number: int, info: VersionInfo, manifest: Manifest, profile: Profile) -> Alternative:
        if manifest.split is None:
            return Alternative(version=number, name="edge only", edge_ms=profile.whole_ms)
        profile = with_manifest_facts(profile, manifest, await self._partitioner.timed_ms(info))
        names = tuple(tensor.name for tensor in manifest.split.cut)
        cut = next((entry for entry in profile.cuts if set(entry.tensors) == set(names)), None)
        if cut is None:
            raise MeshError(
                Reason.CUT_INVALID, f"version {info.version} is cut at {', '.join(names)}, which has no profile"
            )
        codec = crossing_codec(manifest.split)
        if codec not in cut.wire_bytes:
            raise MeshError(Reason.CUT_INVALID, f"version {info.version} crosses as {codec}, which has no profile")
        return Alternative(
            version=number,
            name=f"cut at {', '.join(names)}"[:200],
            edge_ms=cut.head_ms,
            encode_ms=cut.encode_ms.get(codec, 0.0),
            uplink_bytes=cut.wire_bytes[codec],
            cloud_ms=cut.decode_ms.get(codec, 0.0) + cut.tail_ms,
            share=max(await self._share(info, manifest, cut), 1e-3),
        )

    async def _share(self, info: VersionInfo, manifest: Manifest, cut: CutProfile) -> float:
        """Of the samples that cross: what the exit left of its calibration samples; all of them without an exit."""
        if manifest.exit is None:
            return 1.0
        if OUTCOMES not in info.artifacts:
            return 1.0 if cut.escalation is None else cut.escalation
        outcomes = CalibrationOutcomes.from_bytes(await self._registry.fetch(info, OUTCOMES))
        choice = await asyncio.to_thread(
            choose_threshold,
            *outcomes.columns(),
            max_disagreement=self._settings.max_disagreement,
            delta=self._settings.delta,
        )
        return 1 - choice.coverage

    async def _manifest(self, info: VersionInfo) -> Manifest:
        return Manifest.from_json(await self._registry.fetch(info, MANIFEST))
