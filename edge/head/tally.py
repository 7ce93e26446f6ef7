"""What became of one version's samples since it was last asked: counts, sights, and what is urgent about them. No network.

A report can be written down and read again in a later life of the process, and two that were not sent yet can be made one.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, replace

from edge.head.sights import MOST, Seen, Sights
from splitmesh.client.routing import Outcomes, Sight
from splitmesh.errors import MeshError
from splitmesh.routing.audit import Counts, Stratum, merge

NOTHING = Outcomes()
LONGEST_AGE_MS = 30 * 24 * 3600e3
"""Of a sight, thirty days; one that was on the disk for longer is told to be of then."""
MOST_REASONS = 64
"""By which a router takes counts in one report."""
OTHER = "OTHER"


@dataclass(slots=True)
class Numbers:
    """Counts, by what became of a sample; :class:`splitmesh.client.routing.Outcomes` says what each means."""

    edge_exit: int = 0
    edge_whole: int = 0
    cloud_tail: int = 0
    tail_disagreed: int = 0
    fallback: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    hard: Counter[str] = field(default_factory=Counter)

    def counts(self) -> Outcomes:
        """As the router takes them."""
        return Outcomes(
            edge_exit=self.edge_exit,
            edge_whole=self.edge_whole,
            cloud_tail=self.cloud_tail,
            edge_fallback=dict(self.fallback),
            tail_disagreed=self.tail_disagreed,
            refused=dict(self.refused),
            hard=dict(self.hard),
        )


@dataclass(frozen=True, slots=True)
class Report:
    """What is told the router once; sent again, it says the same, but that its sights have aged."""

    model: str
    version: int
    counts: Outcomes
    seen: tuple[Seen, ...]
    left_out: int
    """Frames that there was no room for in ``seen``."""
    audits: Mapping[Stratum, Counts]

    def sights(self, now: float) -> list[Sight]:
        """``seen``, told at ``now`` on the clock of its times."""
        return [_told(seen, now) for seen in self.seen]

    def plus(self, other: Report, random_: random.Random) -> Report:
        """Both, as one report of their version. Where their sights are too many, audited ones stay, and of the others a fair
        draw."""
        seen = _drawn([*self.seen, *other.seen], MOST, random_)
        return Report(
            self.model,
            self.version,
            _sum(self.counts, other.counts),
            tuple(seen),
            self.left_out + other.left_out + len(self.seen) + len(other.seen) - len(seen),
            merge(self.audits, other.audits),
        )

    def written(self, now: float, most_bytes: int, random_: random.Random) -> tuple[Report, bytes]:
        """As :meth:`to_json`, and what that says: with fewer sights where it were more than ``most_bytes`` otherwise. Names may
        have any length; counts and audits are always told."""
        report = self
        while len(body := report.to_json(now)) > most_bytes and report.seen:
            seen = _drawn(report.seen, len(report.seen) // 2, random_)
            left_out = report.left_out + len(report.seen) - len(seen)
            report = replace(report, seen=tuple(seen), left_out=left_out)
        return report, body

    def to_json(self, now: float) -> bytes:
        """To be kept; ``now`` on the clock of its times."""
        kept = {
            "model": self.model,
            "version": self.version,
            "counts": asdict(self.counts),
            "clock": now,
            "seen": [
                [
                    round(now - one.at, 3),
                    one.camera,
                    int(one.exit_class),
                    None if math.isnan(one.ease) else float(one.ease),  # JSON has no NaN
                    one.unusual if one.unusual is None else bool(one.unusual),
                    int(one.exit),
                    one.tail_class if one.tail_class is None else int(one.tail_class),
                    bool(one.audited),
                ]
                for one in self.seen
            ],
            "left_out": self.left_out,
            "audits": [[*stratum, *astuple(counts)] for stratum, counts in self.audits.items()],
        }
        text = json.dumps(kept, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
        return text.encode(errors="surrogatepass")  # as json.loads reads it

    @classmethod
    def from_json(cls, content: bytes, written: float | None) -> Report:
        """As it was kept at ``written`` on the reader's clock; None: on the clock by which it was written. ValueError for
        what is none."""
        try:
            kept = json.loads(content)
            at = kept["clock"] if written is None else written
            seen = tuple(
                Seen(at - age_s, camera, label, math.nan if ease is None else ease, *rest)
                for age_s, camera, label, ease, *rest in kept["seen"]
            )
            audits = {Stratum(*entry[:3]): Counts(*entry[3:]) for entry in kept["audits"]}
            return cls(kept["model"], kept["version"], Outcomes(**kept["counts"]), seen, kept["left_out"], audits)
        except (KeyError, TypeError, AttributeError, MeshError) as error:
            raise ValueError(f"this is no report of outcomes: {error}") from error


class Tally:
    """Of one version."""

    def __init__(self, random_: random.Random, now: float) -> None:
        """``random_`` draws which frames are told; there is room for them from ``now`` on."""
        self.numbers = Numbers()
        self.sights = Sights(random_, now)
        self._short, self._was_short = False, False

    def short_of_budget(self) -> bool:
        """A frame was kept from the tail for want of budget; whether the router has not heard of such a thing lately."""
        news = not (self._short or self._was_short)
        self._short = True
        return news

    def drain(self, model: str, version: int, audits: Mapping[Stratum, Counts], now: float) -> Report | None:
        """All since the last time, with the ``audits`` since then; None where there is nothing to tell."""
        counts, self.numbers = self.numbers.counts(), Numbers()
        seen, left_out = self.sights.drain(now)
        self._short, self._was_short = False, self._short
        if counts == NOTHING and not (seen or left_out or audits):
            return None
        return Report(model, version, counts, seen, left_out, audits)


def _drawn(seen: Sequence[Seen], most: int, random_: random.Random) -> list[Seen]:
    if len(seen) <= most:
        return list(seen)
    audited = [one for one in seen if one.audited]
    others = [one for one in seen if not one.audited]
    audited = audited[max(0, len(audited) - most) :]
    drawn = [*audited, *random_.sample(others, min(len(others), most - len(audited)))]
    return sorted(drawn, key=lambda one: one.at)


def _told(seen: Seen, now: float) -> Sight:
    sight = seen.sight(now)
    return replace(sight, age_ms=min(sight.age_ms, LONGEST_AGE_MS))


def _sum(one: Outcomes, other: Outcomes) -> Outcomes:
    return Outcomes(
        edge_exit=one.edge_exit + other.edge_exit,
        cloud_tail=one.cloud_tail + other.cloud_tail,
        edge_fallback=_by_reason(one.edge_fallback, other.edge_fallback),
        tail_disagreed=one.tail_disagreed + other.tail_disagreed,
        refused=_by_reason(one.refused, other.refused),
        edge_whole=one.edge_whole + other.edge_whole,
        hard=_by_reason(one.hard, other.hard),
    )


def _by_reason(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    total = dict(one)
    for reason, n in other.items():
        known = reason in total or len(total) < MOST_REASONS - 1
        key = reason if known else OTHER
        total[key] = total.get(key, 0) + n
    return total
