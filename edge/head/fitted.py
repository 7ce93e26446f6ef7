"""What a version brings for deciding beside its exits: the fitted deferral score, and the measure of what is unusual.

Fetched, verified and kept on disk like its other parts. Knows a cache and two artefacts; what they are compared with is the
policy's (``policies.py``).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from splitmesh.client.cache import ModelCache
from splitmesh.client.registry import VersionInfo
from splitmesh.errors import MeshError
from splitmesh.model.manifest import DEFERRAL, UNUSUAL, Manifest
from splitmesh.routing.deferral import Deferral
from splitmesh.routing.unusual import Unusual

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Fitted:
    """Of the exit at the cut."""

    deferral: Deferral | None = None
    """None: the version brings none."""
    unusual: Unusual | None = None
    """None: the version brings none."""
    damage: str = ""
    """One sentence where the version brings something that cannot be read, so that nothing can be promised; else empty."""


async def fetch_fitted(cache: ModelCache, version: VersionInfo, manifest: Manifest) -> Fitted:
    """Both, where the version has them and an exit. Raises what the cache raises."""
    if manifest.exit is None:
        return Fitted()
    contents = [await cache.part(version, name) if name in version.artifacts else None for name in (DEFERRAL, UNUSUAL)]
    # In a thread: frames of the version before must not wait for it.
    found = await asyncio.to_thread(_read, *contents)
    if found.damage:
        log.error("every sample of %s version %d escalates: %s", version.model, version.version, found.damage)
    return found


def _read(deferral: bytes | None, unusual: bytes | None) -> Fitted:
    try:
        return Fitted(_if_given(Deferral.from_bytes, deferral), _if_given(Unusual.from_bytes, unusual))
    except MeshError as error:
        return Fitted(damage=error.message)


def _if_given(read: Callable[[bytes], T], content: bytes | None) -> T | None:
    return None if content is None else read(content)
