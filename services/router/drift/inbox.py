"""What heads have told of one version and is not looked at yet, and the sums of it all. Bounded: the oldest samples give way.

Knows reports, not what follows from them.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from datetime import datetime, timedelta

from services.router.drift.line import Seen
from services.router.store import Report
from splitmesh.errors import MeshError, field_error
from splitmesh.routing.audit import Counts, Stratum, merge

MAX_WAITING = 20_000
"""Samples that wait to be looked at; the oldest give way, a report is never refused for them."""
MAX_AT_ONCE = 1_000
"""Samples that are looked at in one go, so that what they show takes effect soon."""
MAX_STRATA = 1_024
"""Of audits that are told apart; up to twice as many are kept until they are sorted."""


class Inbox:
    """Of one version."""

    def __init__(self) -> None:
        self._waiting: deque[Seen] = deque()
        self._audits: dict[Stratum, Counts] = {}
        self.sights = 0
        """Samples that were told."""
        self.left_out = 0
        """Samples that there was no room for, in heads or here."""

    def __len__(self) -> int:
        """Samples that wait."""
        return len(self._waiting)

    def take(self, report: Report, now: datetime) -> None:
        """A report's samples and audits, as it came at ``now``."""
        others = sum(not sight.audited for sight in report.sights)
        stands_for = (others + report.sights_left_out) / max(1, others)  # heads tell every audit
        for sight in sorted(report.sights, key=lambda one: -one.age_ms):
            at = now - timedelta(milliseconds=sight.age_ms)
            self._waiting.append(Seen(at, sight, 1.0 if sight.audited else stands_for))
        self.sights += len(report.sights)
        self.left_out += report.sights_left_out
        while len(self._waiting) > MAX_WAITING:
            self._waiting.popleft()
            self.left_out += 1
        for stratum, counts in report.audits.items():
            self._audits[stratum] = self._audits.get(stratum, Counts()).plus(counts)
        if len(self._audits) > 2 * MAX_STRATA:
            self._audits = merge(self._audits, max_strata=MAX_STRATA)

    def next(self) -> list[Seen]:
        """The oldest that wait, taken out."""
        return [self._waiting.popleft() for _ in range(min(MAX_AT_ONCE, len(self._waiting)))]

    def audits(self) -> dict[Stratum, Counts]:
        """The sums, as of now."""
        return merge(self._audits, max_strata=MAX_STRATA)

    def restore(self, audits: str, sights: int, left_out: int) -> None:
        """Sums as they were saved; FIELD_INVALID for text that never was."""
        self._audits = audits_from(audits)
        self.sights, self.left_out = sights, left_out


def audits_to(audits: Mapping[Stratum, Counts]) -> str:
    """As text."""
    return json.dumps([[*stratum, one.accepted, one.audited, one.disagreed] for stratum, one in audits.items()])


def audits_from(text: str) -> dict[Stratum, Counts]:
    """Of text that ``audits_to`` made; FIELD_INVALID for any other."""
    try:
        return {Stratum(str(row[0]), str(row[1]), int(row[2])): Counts(*map(int, row[3:6])) for row in json.loads(text)}
    except (ValueError, TypeError, LookupError, RecursionError, MeshError) as error:
        raise field_error("audits", f"cannot be read: {error}") from error
