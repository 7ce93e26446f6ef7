"""How often audited answers disagree, by version and camera. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from splitmesh.routing.audit import REST, Counts, Stratum
from splitmesh.routing.audit_estimate import Estimate, estimate

MAX_CAMERAS = 64
"""Of a version, those with most audits; the others are only in the sum over all."""


@dataclass(frozen=True, slots=True)
class AuditsNow:
    """Of one version, over all or of one camera."""

    version: int
    camera: str
    """Empty: all cameras."""
    estimate: Estimate


def audits_now(versions: Mapping[int, Mapping[Stratum, Counts]]) -> list[AuditsNow]:
    """Of each version over all cameras, then by camera; nothing of a version that has counted none."""
    found = []
    for version, counts in versions.items():
        if not counts:
            continue
        found.append(AuditsNow(version, "", estimate(counts)))
        cameras: dict[str, dict[Stratum, Counts]] = {}
        for stratum, one in counts.items():
            if stratum != REST and stratum.camera:
                cameras.setdefault(stratum.camera, {})[stratum] = one
        most = sorted(cameras, key=lambda camera: -sum(one.audited for one in cameras[camera].values()))[:MAX_CAMERAS]
        found += [AuditsNow(version, camera, estimate(cameras[camera])) for camera in sorted(most)]
    return found
