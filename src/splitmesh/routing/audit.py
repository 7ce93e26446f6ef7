"""Which of the samples that an exit answers are sent to the tail all the same, to see how often it would have said otherwise.

Pure and small enough for every frame: numpy-free, one hash a sample. Knows strata and counts; not how a sample is sent, what
its picture shows, or what follows from the counts (``audit_estimate.py``).

Who is taken. A stratum is a camera, a predicted class and an ease bin. Half of the share is kept for the *floor*: of every
``4 / share`` samples of a stratum the first is taken, so that no stratum goes unseen. The rest, and what the floor leaves, is
*drawn*: a sample is taken when a number made of the seed and its key is below its chance, and the chance of a stratum falls
with the root of its size (power allocation, Bankier 1988), which over-samples the rare ones up to four times. Two accounts
hold the whole to the share: the floor may be overdrawn by one audit per stratum, no further, and the chance of a draw follows
what is left. So never more than ``share * samples + max_strata`` and a few are taken, and in the long run the share.

No choice depends on an answer, so within a stratum the audited are like the accepted as long as the order of samples is
not arranged.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from splitmesh.errors import field_error

EASE_BINS = 8
"""Bin k holds eases from 1 - 2**-k up: accepted samples crowd near 1."""
MAX_NAME = 256
"""Characters of a camera's or class's name."""
FLOOR_EVERY = 4
"""A stratum's floor is one of so many times ``1 / share`` of its samples."""
FLOAT = 2.0
"""Audits that the floor's account may save up; what is above goes to the draws."""
GAIN = 0.25
"""How fast the chance of a draw follows the account: it is about ``share`` when 1 / GAIN audits are saved up."""
STRONGEST = 4.0
"""Most by which a stratum's chance is above or below the others'."""


class Stratum(NamedTuple):
    """Samples that are audited alike."""

    camera: str
    label: str
    """The class that the exit named, as text."""
    ease_bin: int
    """0 to ``EASE_BINS`` - 1."""


REST = Stratum("", "", -1)
"""Every stratum that there was no room for."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Of one stratum over some time. An audit may be answered in a later count than it was accepted in."""

    accepted: int = 0
    """Answered by an exit, audited or not."""
    audited: int = 0
    """Of them, those that the tail has answered too."""
    disagreed: int = 0
    """Of those, answered otherwise."""

    def __post_init__(self) -> None:
        if not (self.accepted >= 0 and 0 <= self.disagreed <= self.audited):
            raise field_error(
                "counts", f"accepted {self.accepted}, audited {self.audited}, disagreed {self.disagreed} cannot be"
            )

    def plus(self, other: Counts) -> Counts:
        """The sum."""
        return Counts(self.accepted + other.accepted, self.audited + other.audited, self.disagreed + other.disagreed)


def ease_bin(ease: float) -> int:
    """0 below 1/2, then one more each time that the distance to 1 halves, ``EASE_BINS`` - 1 at most.

    MeshError FIELD_INVALID unless ``ease`` is in 0..1: an undefined ease is never accepted.
    """
    if not 0 <= ease <= 1:
        raise field_error("ease", f"is {ease}, expected 0 to 1")
    hardness = 1.0 - ease
    last = EASE_BINS - 1
    return last if hardness <= 2.0**-last else int(-math.log2(hardness))


def stratum_of(camera: str, label: str, ease: float) -> Stratum:
    """Of a sample. MeshError FIELD_INVALID for a name of more than ``MAX_NAME`` characters or an ease that is none."""
    for field, name in (("camera", camera), ("label", label)):
        if len(name) > MAX_NAME:
            raise field_error(field, f"has {len(name)} characters, at most {MAX_NAME} are allowed")
    return Stratum(camera, label, ease_bin(ease))


def merge(*given: Mapping[Stratum, Counts], max_strata: int = 256) -> dict[Stratum, Counts]:
    """The sum of counts of several heads or times, the strata with most accepted samples first.

    At most ``max_strata``: the smallest share ``REST``, which is always the last.
    """
    _check_max_strata(max_strata)
    total: dict[Stratum, Counts] = {}
    for counts in given:
        for stratum, one in counts.items():
            total[stratum] = total.get(stratum, Counts()).plus(one)
    rest = total.pop(REST, None)
    order = sorted(total, key=lambda stratum: (-total[stratum].accepted, stratum))
    room = max_strata if rest is None and len(order) <= max_strata else max_strata - 1
    for stratum in order[room:]:
        rest = (rest or Counts()).plus(total[stratum])
    kept = {stratum: total[stratum] for stratum in order[:room]}
    return kept if rest is None else {**kept, REST: rest}


@dataclass(slots=True)
class _Kept:
    """What is known of a stratum: ``seen`` since it is kept, the counts since the last drain."""

    seen: int = 0
    owed: bool = False
    """It is due a floor audit."""
    accepted: int = 0
    audited: int = 0
    disagreed: int = 0

    def counts(self) -> Counts:
        return Counts(self.accepted, self.audited, self.disagreed)


class Auditor:
    """Of one head and application. Not safe to call from several threads at once.

    Args:
        share: of the accepted samples that are audited, 0..1; 0: none.
        seed: another one takes other samples.
        max_strata: that are told apart, at least 2; the one that was longest without a sample goes to ``REST``.
    """

    def __init__(self, share: float, seed: int, max_strata: int = 256) -> None:
        _check_max_strata(max_strata)
        self._seed = hashlib.blake2b(str(seed).encode(), digest_size=32).digest()
        self._most = max_strata
        self._strata: OrderedDict[Stratum, _Kept] = OrderedDict()
        self._rest = _Kept()
        self.set_share(share)
        self._floor = self._draws = 0.0
        self._size, self._roots = 0, 0.0
        self.seen = 0
        """Samples that ``take`` was asked about."""
        self.taken = 0
        """Of them, those to audit."""

    def set_share(self, share: float) -> None:
        """Another share from the next sample on; counts and accounts stay. MeshError FIELD_INVALID unless it is in 0..1."""
        if not 0 <= share <= 1:
            raise field_error("share", f"is {share}, expected 0 to 1")
        self._share = share
        self._period = math.ceil(FLOOR_EVERY / share) if share else 0

    def take(self, camera: str, label: str, ease: float, key: str) -> bool:
        """Whether to audit an accepted sample; counts it. The same calls in the same order give the same answers.

        Args:
            camera: id of its camera.
            label: the class that the exit named.
            ease: 0..1, as it was compared with the threshold.
            key: of the sample, such as its id; another one for every sample.

        Raises MeshError FIELD_INVALID as :func:`stratum_of`; nothing is counted then.
        """
        kept = self._of(stratum_of(camera, label, ease))
        kept.accepted += 1
        self.seen += 1
        if self._share == 0:
            return False
        kept.owed |= kept.seen % self._period == 0
        self._size += 1
        self._roots += math.sqrt(kept.seen + 1) - math.sqrt(kept.seen)
        kept.seen += 1
        self._earn()
        if kept.owed and self._floor > -self._most:
            self._floor -= 1
        elif self._number(key) < self._chance(kept):
            self._draws -= 1
        else:
            return False
        kept.owed = False
        self.taken += 1
        return True

    def answered(self, camera: str, label: str, ease: float, *, disagreed: bool) -> None:
        """The tail's answer to an audited sample came. Audits that fail are not reported: they tell nothing."""
        kept = self._strata.get(stratum_of(camera, label, ease), self._rest)
        kept.audited += 1
        kept.disagreed += disagreed

    def counts(self) -> dict[Stratum, Counts]:
        """Since the last ``drain``, of strata that have any."""
        every = {**self._strata, REST: self._rest}
        return {stratum: kept.counts() for stratum, kept in every.items() if kept.accepted or kept.audited}

    def drain(self) -> dict[Stratum, Counts]:
        """``counts``, which begin anew; who is taken goes on as before."""
        counts = self.counts()
        for kept in (*self._strata.values(), self._rest):
            kept.accepted = kept.audited = kept.disagreed = 0
        return counts

    def _of(self, stratum: Stratum) -> _Kept:
        kept = self._strata.get(stratum)
        if kept is None:
            if len(self._strata) >= self._most - 1:
                self._forget(self._strata.popitem(last=False)[1])
            kept = self._strata[stratum] = _Kept()
        else:
            self._strata.move_to_end(stratum)
        return kept

    def _forget(self, kept: _Kept) -> None:
        """Its counts stay, in the rest; when it comes back it is a new stratum."""
        self._size -= kept.seen
        self._roots -= math.sqrt(kept.seen)
        self._rest.accepted += kept.accepted
        self._rest.audited += kept.audited
        self._rest.disagreed += kept.disagreed

    def _earn(self) -> None:
        self._floor += self._share / 2
        surplus = max(0.0, self._floor - FLOAT)
        self._floor -= surplus
        self._draws += self._share / 2 + surplus

    def _chance(self, kept: _Kept) -> float:
        # its mean over all samples of the strata kept is 1
        weight = self._size / (self._roots * math.sqrt(kept.seen))
        return min(max(weight, 1 / STRONGEST), STRONGEST) * max(0.0, self._draws) * GAIN * self._share

    def _number(self, key: str) -> float:
        """Uniform in 0..1, from seed and key alone."""
        digest = hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=8, key=self._seed).digest()
        return int.from_bytes(digest, "big") / 2.0**64


def _check_max_strata(max_strata: int) -> None:
    if max_strata < 2:
        raise field_error("max_strata", f"is {max_strata}, expected at least 2")
