"""Watches what heads report of their samples for drift: per camera and class, and over all.

Knows three things of a sample, each as it comes: its ease, whether it was unusual, and whether the tail disagreed when it was
audited. Knows no gRPC, no policy and no clock; what a drift leads to is decided elsewhere. One of these for each version of
a model: another exit has other eases.

An ease that is undefined counts as 0, for such a sample escalates as the hardest do. A watch learns what is usual from its
first samples (``changes.LEAST_REFERENCE``) and says nothing of ease until then (``usual``); the levels of the flags come from
calibration. Which watch is fed what, is the caller's business (``line.py``).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from services.router.drift.changes import (
    BLOCK,
    ODDS,
    Change,
    EaseChange,
    EaseState,
    FlagChange,
    FlagState,
    Number,
)
from splitmesh.errors import field_error

MAX_STATE_BYTES = 16 * 1024 * 1024
"""A larger state is refused unread; a watch takes about 700 bytes."""
MAX_NAME = 256
"""Characters of a camera's or class's name."""


class Kind(StrEnum):
    """What has drifted."""

    EASE = "ease"
    """The mean ease, up or down."""
    UNUSUAL = "unusual"
    """The share of unusual samples, upwards."""
    DISAGREEMENT = "disagreement"
    """The share of audited samples whose answer was not the tail's, upwards."""


@dataclass(frozen=True, slots=True)
class Drift:
    """Something is no longer as it was."""

    kind: Kind
    camera: str | None
    """None: over all cameras and classes."""
    label: str | None
    """The class; None with the camera."""
    before: float
    """Mean ease, or share of flags: of the samples before, or of calibration."""
    now: float
    """The same since the change."""
    samples: int
    """Behind ``now``; of audited ones for a disagreement."""
    at: float
    """When it was noticed, on the caller's clock."""


@dataclass(frozen=True, slots=True)
class Levels:
    """Shares of samples that calibration found or allows, between 0 and 1, both excluded."""

    unusual: float
    disagreement: float

    def __post_init__(self) -> None:
        for name, level in (("unusual", self.unusual), ("disagreement", self.disagreement)):
            if not 0 < level < 1:
                raise field_error(name, f"is {level}, expected a number between 0 and 1, both excluded")


@checked(slots=True)
class _WatchState:
    camera: str | None
    label: str | None
    ease: EaseState
    unusual: FlagState
    disagreement: FlagState


@checked(slots=True)
class _State:
    levels: tuple[Number, Number]
    forgotten: int
    watches: list[_WatchState]
    """That over all first, then the one that was longest without a sample."""
    schema_version: Literal[2] = 2
    """1 held eases where wide watches hold distances from what is usual."""


_STATE = TypeAdapter(_State)


class _Watch:
    """One camera and class, or all."""

    def __init__(self, levels: Levels, state: _WatchState | None = None) -> None:
        self.ease = EaseChange(state.ease if state else None)
        self.unusual = FlagChange(levels.unusual, BLOCK, state.unusual if state else None)
        self.disagreement = FlagChange(levels.disagreement, 1, state.disagreement if state else None)

    def saw(self, ease: float | None, unusual: bool | None, disagreed: bool | None) -> list[tuple[Kind, Change]]:
        found = (
            (Kind.EASE, None if ease is None else self.ease.add(0.0 if math.isnan(ease) else ease)),
            (Kind.UNUSUAL, None if unusual is None else self.unusual.add(unusual)),
            (Kind.DISAGREEMENT, None if disagreed is None else self.disagreement.add(disagreed)),
        )
        return [(kind, change) for kind, change in found if change is not None]


class Watches:
    """Of one version of a model.

    Args:
        levels: of the flags.
        max_watches: cameras with a class that are watched, at least 1; the one that was longest without a sample is
            forgotten, and begins anew should it come back.
    """

    def __init__(self, levels: Levels, *, max_watches: int = 256) -> None:
        if max_watches < 1:
            raise field_error("max_watches", f"is {max_watches}, expected at least 1")
        self._levels, self._most = levels, max_watches
        self._all = _Watch(levels)
        self._watches: OrderedDict[tuple[str, str], _Watch] = OrderedDict()
        self.forgotten = 0
        """Watches that there was no room for."""

    def __len__(self) -> int:
        """Watches of a camera and class."""
        return len(self._watches)

    def saw(
        self,
        camera: str,
        label: str,
        *,
        ease: float | None = None,
        unusual: bool | None = None,
        disagreed: bool | None = None,
        at: float,
        over_all: bool = True,
        eases_over_all: tuple[()] | tuple[float] | None = None,
    ) -> list[Drift]:
        """What is known of one sample, in the order of time; the tail's answer to it may come later, in a call of its own.

        Args:
            camera: id of its camera.
            label: the class that the exit named.
            ease: 0..1 or NaN, where a sample was decided.
            unusual: of the same sample, where it was looked at.
            disagreed: of an audited sample, where the tail has answered.
            at: now, on any clock.
            over_all: the watch over all cameras and classes sees it too,
            eases_over_all: but of eases these; None: the same.

        Returns the drifts that this sample made certain, that over all first. MeshError FIELD_INVALID for a value out of
        range; nothing is counted then.
        """
        for field, name in (("camera", camera), ("label", label)):
            if len(name) > MAX_NAME:
                raise field_error(field, f"has {len(name)} characters, at most {MAX_NAME} are allowed")
        own_eases = () if ease is None else (ease,)
        wide_eases = own_eases if eases_over_all is None else eases_over_all
        for value in (*own_eases, *wide_eases):
            if not (math.isnan(value) or 0 <= value <= 1):
                raise field_error("ease", f"is {value}, expected 0 to 1, or NaN")
        if not math.isfinite(at):
            raise field_error("at", f"is {at}, expected a finite number")
        wide = self._all.saw(next(iter(wide_eases), None), unusual, disagreed) if over_all else []
        own = self._of(camera, label).saw(ease, unusual, disagreed)
        return [_drift(None, None, *found, at) for found in wide] + [_drift(camera, label, *found, at) for found in own]

    def usual(self, camera: str, label: str) -> float | None:
        """Mean ease of a camera and class, as far as it is known; None before there are enough samples."""
        watch = self._watches.get((camera, label))
        return None if watch is None else watch.ease.usual

    def usual_of(self, camera: str | None) -> dict[tuple[str, str], float]:
        """The same of every class of a camera, or of all cameras, where it is known."""
        means = {
            place: watch.ease.usual for place, watch in self._watches.items() if place[1] and camera in (None, place[0])
        }
        return {place: mean for place, mean in means.items() if mean is not None}

    def begin_anew(self, camera: str | None = None, label: str | None = None) -> None:
        """What was usual of it is forgotten: of a camera and class, of all watches of a camera, or of the one over all."""
        if camera is None:
            self._all = _Watch(self._levels)
            return
        for place in [one for one in self._watches if one[0] == camera and label in (None, one[1])]:
            self._watches[place] = _Watch(self._levels)

    def to_json(self) -> bytes:
        """All that is needed to go on after a restart. Of an ease's window only mean, variance and length are kept."""
        watches = [_saved(None, None, self._all)]
        watches += [_saved(camera, label, watch) for (camera, label), watch in self._watches.items()]
        levels = (self._levels.unusual, self._levels.disagreement)
        return _STATE.dump_json(_State(levels=levels, forgotten=self.forgotten, watches=watches))

    @classmethod
    def from_json(cls, data: bytes, levels: Levels, *, max_watches: int = 256) -> Watches:
        """As it was saved; flags begin anew where ``levels`` are others now.

        MeshError FIELD_INVALID names the first problem; start without a state then.
        """
        state = _read(data)
        watches = cls(levels, max_watches=max_watches)
        for one in state.watches:
            if state.levels[0] != levels.unusual:
                one.unusual = FlagState()
            if state.levels[1] != levels.disagreement:
                one.disagreement = FlagState()
        over_all, *others = state.watches
        watches._all = _Watch(levels, over_all)
        watches.forgotten = state.forgotten + max(0, len(others) - max_watches)
        for one in others[-max_watches:]:
            watches._watches[one.camera or "", one.label or ""] = _Watch(levels, one)
        return watches

    def _of(self, camera: str, label: str) -> _Watch:
        watch = self._watches.get((camera, label))
        if watch is None:
            if len(self._watches) >= self._most:
                self._watches.popitem(last=False)
                self.forgotten += 1
            watch = self._watches[camera, label] = _Watch(self._levels)
        else:
            self._watches.move_to_end((camera, label))
        return watch


def _drift(camera: str | None, label: str | None, kind: Kind, change: Change, at: float) -> Drift:
    return Drift(kind, camera, label, change.before, change.now, change.samples, at)


def _saved(camera: str | None, label: str | None, watch: _Watch) -> _WatchState:
    return _WatchState(camera, label, watch.ease.state(), watch.unusual.state(), watch.disagreement.state())


def _read(data: bytes) -> _State:
    if len(data) > MAX_STATE_BYTES:
        raise field_error("state", f"has {len(data)} bytes, at most {MAX_STATE_BYTES} are read")
    try:
        state = _STATE.validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise field_error("state", f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from error
    if not state.watches or state.watches[0].camera is not None or None in {one.camera for one in state.watches[1:]}:
        raise field_error("state", "watches: does not begin with the one over all")
    for one in state.watches:
        for flag in (one.unusual, one.disagreement):
            if not len(flag.wealth) == len(flag.runs) == len(flag.flags) == len(ODDS):
                raise field_error("state", f"watches: a flag has no {len(ODDS)} bets")
    return state
