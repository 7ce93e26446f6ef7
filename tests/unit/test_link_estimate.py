"""The link's estimate against simulated links: frames cross one after the other at a rate, answers come back."""

from __future__ import annotations

import random

import pytest

from splitmesh.client.link_estimate import LinkEstimator


class Link:
    """A FIFO link of some rate and round trip, with a tail behind it."""

    def __init__(self, estimator: LinkEstimator, bytes_per_ms: float, rtt_ms: float, jitter_ms: float = 0.0) -> None:
        self.estimator, self.bytes_per_ms, self.rtt_ms, self.jitter_ms = estimator, bytes_per_ms, rtt_ms, jitter_ms
        self.now = 1000.0
        self._free = 0.0
        self._rng = random.Random(1)
        self._pending: list[tuple[float, int]] = []

    def run(self, frames: int, size: int, every_ms: float, tail_ms: float = 3.0) -> None:
        """Send frames at a steady pace, tell the estimator of answers as they come."""
        for _ in range(frames):
            self._answer_until(self.now)
            number = self.estimator.sent(size, self.now)
            self._free = max(self._free, self.now) + size / self.bytes_per_ms
            delay = self.rtt_ms + abs(self._rng.gauss(0, self.jitter_ms)) + tail_ms
            self._pending.append((self._free + delay, number))
            self.now += every_ms
        self._answer_until(self.now)

    def ping(self) -> None:
        self.estimator.pinged(self.rtt_ms, self.now)

    def _answer_until(self, now: float) -> None:
        for at, number in sorted(self._pending):
            if at <= now:
                self.estimator.answered(number, at, queue_ms=1.0, compute_ms=2.0)
        self._pending = [entry for entry in self._pending if entry[0] > now]


@pytest.mark.parametrize("mbps", [1.0, 8.0, 40.0])
@pytest.mark.parametrize("planned_mbps", [0.5, 100.0])
def test_the_rate_is_found_whatever_was_planned(mbps: float, planned_mbps: float) -> None:
    estimator = LinkEstimator(planned_mbps * 125, 20.0)
    link = Link(estimator, mbps * 125, 20.0)
    link.run(60, size=20_000, every_ms=max(40.0, 20_000 / (mbps * 125) * 1.2))
    assert estimator.state(link.now).bytes_per_ms == pytest.approx(mbps * 125, rel=0.1)
    assert estimator.state(link.now).queue_ms == pytest.approx(1.0, abs=0.1)


def test_frames_that_wait_for_each_other_do_not_look_like_a_slow_link() -> None:
    estimator = LinkEstimator(100.0, 20.0)
    link = Link(estimator, 1000.0, 20.0)
    for _ in range(10):
        link.run(8, size=30_000, every_ms=0.5)  # a burst of eight cameras
        link.now += 400
        link.run(0, size=0, every_ms=0)
    assert estimator.state(link.now).bytes_per_ms == pytest.approx(1000.0, rel=0.2)


def test_a_ping_tells_the_round_trip_from_the_transfer() -> None:
    estimator = LinkEstimator(5000.0, 5.0)  # planned for a much nearer cloud
    link = Link(estimator, 500.0, 60.0)
    for _ in range(5):
        link.ping()
        link.run(10, size=10_000, every_ms=100)
    state = estimator.state(link.now)
    assert state.rtt_ms == pytest.approx(5.0) or state.rtt_ms == pytest.approx(60.0)
    assert state.rtt_ms == pytest.approx(60.0)
    assert state.bytes_per_ms == pytest.approx(500.0, rel=0.1)


def test_silence_lowers_the_estimate_before_any_answer() -> None:
    estimator = LinkEstimator(5000.0, 20.0)
    link = Link(estimator, 5000.0, 20.0)
    link.run(20, size=20_000, every_ms=40)
    before = estimator.state(link.now).bytes_per_ms
    estimator.sent(20_000, link.now)
    later = estimator.state(link.now + 300).bytes_per_ms
    assert later < before / 10
    assert later == pytest.approx(20_000 / (300 - 20), rel=0.2)
    assert estimator.state(link.now + 10).bytes_per_ms == before, "a frame just sent tells nothing yet"


def test_what_a_given_up_frame_told_stays_and_a_failed_one_tells_nothing() -> None:
    estimator = LinkEstimator(5000.0, 20.0)
    number = estimator.sent(20_000, 0.0)
    estimator.forget(number)
    assert estimator.state(10_000.0).bytes_per_ms == 5000.0
    number = estimator.sent(20_000, 20_000.0)
    estimator.gave_up(number, 21_000.0)
    assert estimator.state(21_000.0).bytes_per_ms == pytest.approx(20_000 / 980, rel=0.01)
    estimator.answered(number, 22_000.0, queue_ms=0, compute_ms=0)  # too late: it is out of the books
    assert estimator.heard_ms < 0


def test_small_frames_on_a_fast_link_only_say_at_least() -> None:
    estimator = LinkEstimator(10.0, 20.0)
    link = Link(estimator, 10_000.0, 20.0, jitter_ms=0.2)
    link.run(50, size=800, every_ms=30)
    state = estimator.state(link.now)
    assert 300 <= state.bytes_per_ms <= 10_000


def test_a_tenfold_drop_is_seen_within_a_few_frames() -> None:
    estimator = LinkEstimator(5000.0, 20.0)
    link = Link(estimator, 5000.0, 20.0, jitter_ms=1.0)
    link.run(50, size=40_000, every_ms=100)
    link.bytes_per_ms = 500.0
    link.run(6, size=40_000, every_ms=100)
    assert estimator.state(link.now).bytes_per_ms == pytest.approx(500.0, rel=0.35)


def test_a_frame_without_content_counts_as_one_byte() -> None:
    estimator = LinkEstimator(100.0, 10.0)
    estimator.answered(estimator.sent(0, 1000.0), 1100.0, queue_ms=0.0, compute_ms=0.0)
    assert estimator.state(1200.0).bytes_per_ms > 0


def test_after_a_silence_one_frame_is_believed() -> None:
    """A head that left a narrow link asks it every few seconds only: it must not take a minute to see that it healed."""
    estimator = LinkEstimator(5000.0, 20.0)
    link = Link(estimator, 50.0, 20.0)
    link.run(10, size=20_000, every_ms=600)
    assert estimator.state(link.now).bytes_per_ms < 100
    link.bytes_per_ms = 5000.0
    link.now += 3000
    link.run(1, size=20_000, every_ms=100)
    assert estimator.state(link.now).bytes_per_ms > 2000
