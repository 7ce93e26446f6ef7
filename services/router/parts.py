"""What of a version the router needs to decide single samples: its classes, and what tells worthy and unusual samples.

Fetched from the registry when a gateway first asks about a version, and kept for the few versions last asked about: a version
never changes. Knows artefacts, no policy.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from services.router.locks import Locks
from splitmesh.client.registry import RegistryClient
from splitmesh.model.manifest import DEFERRAL, MANIFEST, OUTCOMES, UNUSUAL, Manifest
from splitmesh.model.outcomes import CalibrationOutcomes
from splitmesh.routing.deferral import Deferral
from splitmesh.routing.finding import FINDINGS
from splitmesh.routing.unusual import Unusual

MAX_KEPT = 16
"""Versions; one takes at most a dozen megabytes."""


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """Of one version."""

    labels: tuple[str, ...] = ()
    """Classes that its exit names; empty: they have no names."""
    classes: int = 0
    """As many its exit tells apart; 0: nothing says how many."""
    finding: bool = False
    """Its exit is a detector's."""
    deferral: Deferral | None = None
    unusual: Unusual | None = None


FetchParts = Callable[[str, int], Awaitable[Parts]]
"""MODEL_NOT_FOUND, VERSION_NOT_FOUND, MODEL_CORRUPT, SERVICE_UNAVAILABLE."""


class PartsCache:
    """The parts of the versions last asked about."""

    def __init__(self, fetch: FetchParts, *, max_kept: int = MAX_KEPT) -> None:
        self._fetch = fetch
        self._max_kept = max_kept
        self._kept: OrderedDict[tuple[str, int], Parts] = OrderedDict()
        self._locks = Locks[tuple[str, int]]()

    async def of(self, model: str, version: int) -> Parts:
        """Kept or fetched; raises what the fetch raises, and is asked again then."""
        place = (model, version)
        async with self._locks.of(place):
            if place not in self._kept:
                self._kept[place] = await self._fetch(model, version)
                while len(self._kept) > self._max_kept:
                    self._kept.popitem(last=False)
            else:
                self._kept.move_to_end(place)
            return self._kept[place]

    async def labels_of(self, model: str, version: int) -> tuple[str, ...]:
        """Classes that the version's exits name; as :meth:`of`."""
        return (await self.of(model, version)).labels


def parts_from(registry: RegistryClient) -> FetchParts:
    """Fetches from a registry."""

    async def fetch(model: str, version: int) -> Parts:
        info = await registry.get_version(model, version)
        manifest = Manifest.from_json(await registry.fetch(info, MANIFEST))
        exit_ = manifest.exit
        finding = exit_ is not None and exit_.finding is not None
        labels = FINDINGS if finding else tuple(manifest.labels)
        classes = len(labels)
        if not labels and OUTCOMES in info.artifacts:
            classes = CalibrationOutcomes.from_bytes(await registry.fetch(info, OUTCOMES)).probabilities.shape[2]
        return Parts(
            labels=labels,
            classes=classes,
            finding=finding,
            deferral=Deferral.from_bytes(await registry.fetch(info, DEFERRAL)) if DEFERRAL in info.artifacts else None,
            unusual=Unusual.from_bytes(await registry.fetch(info, UNUSUAL)) if UNUSUAL in info.artifacts else None,
        )

    return fetch
