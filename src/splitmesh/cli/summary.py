"""What ``splitmesh stream`` keeps of a stream: running counts, so that a stream without end needs no more memory."""

from __future__ import annotations

from collections import Counter, deque

from splitmesh.cli.output import show_table
from splitmesh.client import Answer, FrameFailure, Reason, StreamCounts

MAX_LATENCIES = 100_000
"""Answers of each kind, the last ones, that percentiles are taken of."""


class StreamSummary:
    """Counts of outcomes, by who answered or why nobody did."""

    def __init__(self, max_latencies: int = MAX_LATENCIES) -> None:
        self._max_latencies = max_latencies
        self._answered: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._superseded = 0
        self._classes: Counter[str] = Counter()
        self._latencies_ms: dict[str, deque[float]] = {}
        self._uplink_bytes = 0

    @property
    def failed(self) -> int:
        """Frames that were not answered and should have been."""
        return self._refused.total()

    @property
    def _total(self) -> int:
        return self._answered.total() + self.failed + self._superseded

    def add(self, outcome: Answer | FrameFailure) -> None:
        """Count one frame."""
        if isinstance(outcome, FrameFailure) and outcome.error.reason is Reason.FRAME_SUPERSEDED:
            self._superseded += 1
            return
        if isinstance(outcome, FrameFailure):
            self._refused[outcome.error.reason.value] += 1
            return
        who = outcome.answered_by.value
        self._answered[who] += 1
        self._latencies_ms.setdefault(who, deque(maxlen=self._max_latencies)).append(outcome.timings.total_ms)
        self._uplink_bytes += outcome.uplink_bytes
        if outcome.labels:
            self._classes[outcome.label.name or str(outcome.label.index)] += 1

    def rows(self) -> list[list[object]]:
        """Who answered, frames, share, and the 50th and 99th percentile of milliseconds; refusals last."""
        total = max(1, self._total)
        rows: list[list[object]] = []
        for who, count in self._answered.most_common():
            times = sorted(self._latencies_ms[who])
            rows.append([who, count, count / total, times[len(times) // 2], times[len(times) * 99 // 100]])
        for reason, count in self._refused.most_common():
            rows.append([f"refused: {reason}", count, count / total, "", ""])
        if self._superseded:
            rows.append(["superseded by newer frames", self._superseded, self._superseded / total, "", ""])
        return rows

    def show(self) -> None:
        """The tables and a line on the uplink."""
        show_table(f"{self._total} frames", ["answered by", "frames", "share", "p50 ms", "p99 ms"], self.rows())
        if self._classes:
            show_table("", ["class", "frames"], [list(pair) for pair in self._classes.most_common()])
        print(f"{self._uplink_bytes:,} bytes of features on the uplink")


def live(counts: StreamCounts) -> str:
    """One line on a stream that is still running."""
    said = {"answered": counts.answered, "failed": counts.failed, "superseded": counts.superseded}
    more = {"sent again": counts.resent, "reconnected": counts.reconnected}
    return ", ".join(f"{n} {name}" for name, n in {**said, **{name: n for name, n in more.items() if n}}.items())
