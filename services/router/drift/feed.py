"""One version's watches, and which of them is fed what of a sample: its camera and class, its camera, and that over all.

Flags are watched of cameras and over all, not of classes: their levels are those of all samples together, and a class that is
rare may always have had a higher one. Of eases see ``blocks.py``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from services.router.drift.blocks import MIDDLE, Blocks, distance
from services.router.drift.events import Place
from services.router.drift.watches import Drift, Kind, Levels, Watches
from services.router.store import Sight

MAX_WATCHES = 512
"""Cameras with and without a class."""


class Feed:
    """Of one version.

    Args:
        levels: of the flags.
    """

    def __init__(self, levels: Levels) -> None:
        self.watches = Watches(levels, max_watches=MAX_WATCHES)
        self._blocks = Blocks(MAX_WATCHES)

    def saw(
        self, sight: Sight, at: float, *, audit_share: float, stands_for: float, known: bool, wide: bool
    ) -> list[Drift]:
        """Drifts that the sample made certain: of the camera first, then of camera and class, then over all.

        Args:
            sight: of it.
            at: seconds on any clock.
            audit_share: of sure answers.
            stands_for: samples, itself and those that its head left out.
            known: what its camera and class have become is known, so no wider watch sees it.
            wide: the watch over all sees it.
        """
        own, label = Place(sight.camera, sight.exit_class), str(sight.exit_class)
        usual = self.watches.usual(sight.camera, label)
        ease = self._blocks.ease(own, sight.ease, known=usual is not None)
        moved = distance(ease, usual)
        found = self.watches.saw(sight.camera, label, ease=ease, at=at, over_all=False)
        if known:
            return found
        if found and not self._blocks.others(own):
            found = [replace(drift, label="") for drift in found]
        flags = self._flags(own, sight, audit_share, stands_for)
        by_camera = self.watches.saw(
            sight.camera,
            "",
            ease=moved,
            unusual=sight.unusual,
            disagreed=flags[0] if flags else None,
            at=at,
            over_all=wide,
            eases_over_all=self._blocks.over_all(moved) if wide else (),
        )
        for flag in flags[1:]:
            by_camera += self.watches.saw(sight.camera, "", disagreed=flag, at=at, over_all=wide)
        return sorted(
            [*self._eases(by_camera, (sight.camera, label), usual), *found],
            key=lambda drift: (drift.camera is None, drift.label != ""),
        )

    def _flags(self, place: Place, sight: Sight, audit_share: float, stands_for: float) -> list[bool]:
        """Whether the promise was broken, as often as that is to be fed."""
        if sight.tail_class is None:
            return []
        if sight.audited:
            return [sight.tail_class != sight.exit_class]
        return [False] * self._blocks.right(place, audit_share, stands_for)

    def _eases(self, found: Iterable[Drift], own: tuple[str, str], usual: float | None) -> list[Drift]:
        """Distances from what is usual told as eases. The sample's own place may just have forgotten what was usual there."""
        told = []
        for drift in found:
            if drift.kind is Kind.EASE:
                means = self.watches.usual_of(drift.camera)
                if usual is not None:
                    means[own] = usual
                level = sum(means.values()) / max(1, len(means)) - MIDDLE
                before, now = (min(1.0, max(0.0, level + value)) for value in (drift.before, drift.now))
                drift = replace(drift, before=before, now=now)
            told.append(drift)
        return told
