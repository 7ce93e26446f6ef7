"""What the kernel's facts and small frames add to the estimate, and when the kernel is not believed."""

from __future__ import annotations

import random

import pytest

from splitmesh.client.link_estimate import KNOWN_S, LOSS_WINDOW_S, LinkEstimator
from splitmesh.kernel.tcp_info import TcpFacts

TAIL = ("10.0.0.1", 7002)
OTHER = ("10.0.0.2", 7002)


def told(
    estimator: LinkEstimator,
    now_ms: float,
    *,
    min_rtt_ms: float = 0.0,
    mb_per_s: float = 0.0,
    sent: int = 0,
    resent: int = 0,
    peer: tuple[str, int] = TAIL,
) -> None:
    facts = TcpFacts(min_rtt_ms, min_rtt_ms, mb_per_s * 1e6, sent, resent, 0)
    estimator.kernel_told({peer: facts}, now_ms)


def crossed(
    estimator: LinkEstimator, *, size: int, rtt_ms: float, bytes_per_ms: float, frames: int = 30, jitter_ms: float = 0.0
) -> float:
    """Frames one at a time over such a link, none waiting; the time when the last was there."""
    rng, now_ms = random.Random(3), 1000.0
    for _ in range(frames):
        number = estimator.sent(size, now_ms)
        took_ms = rtt_ms + size / bytes_per_ms + abs(rng.gauss(0.0, jitter_ms)) + 3.0
        estimator.answered(number, now_ms + took_ms, queue_ms=1.0, compute_ms=2.0)
        now_ms += took_ms + 50
    return now_ms


def test_before_anything_crossed_nothing_is_known_but_what_was_planned_is_believed() -> None:
    estimator = LinkEstimator(1000.0, 10.0)
    facts = estimator.facts()
    assert (facts.goodput_mbps, facts.rtt_ms, facts.loss) == (0.0, 0.0, 0.0)
    assert estimator.state(0.0).bytes_per_ms == 1000.0
    assert estimator.state(0.0).rtt_ms == 10.0


def test_frames_of_eight_bytes_tell_the_round_trip_and_leave_the_rate_as_it_was() -> None:
    estimator = LinkEstimator(5000.0, 10.0)
    now_ms = crossed(estimator, size=8, rtt_ms=30.0, bytes_per_ms=9000.0, jitter_ms=4.0)
    assert estimator.state(now_ms).bytes_per_ms == 5000.0
    assert estimator.facts().goodput_mbps == 0.0
    assert estimator.facts().rtt_ms == pytest.approx(30.0, abs=1.0)


def test_frames_that_cross_within_the_jitter_do_not_look_like_a_slow_link() -> None:
    estimator = LinkEstimator(12_500.0, 10.0)
    now_ms = crossed(estimator, size=2000, rtt_ms=10.0, bytes_per_ms=12_500.0, jitter_ms=3.0, frames=100)
    assert estimator.state(now_ms).bytes_per_ms > 6000


def test_the_kernel_tells_the_round_trip_from_the_transfer() -> None:
    estimator = LinkEstimator(5000.0, 5.0)  # planned for a much nearer cloud
    told(estimator, 900.0, min_rtt_ms=60.0, mb_per_s=0.12)
    now_ms = crossed(estimator, size=10_000, rtt_ms=60.0, bytes_per_ms=500.0)
    assert estimator.facts().rtt_ms == pytest.approx(60.0)
    assert estimator.facts().goodput_mbps == pytest.approx(4.0, rel=0.1)
    assert estimator.quiet_ms(now_ms) == 0


def test_of_a_connection_that_ends_at_a_proxy_the_frames_are_believed() -> None:
    """20 ms away, 5 of them to the operator's proxy, which takes 10 KB in no time: they did not take 15 ms to leave."""
    estimator = LinkEstimator(1250.0, 15.0)
    told(estimator, 900.0, min_rtt_ms=5.0, mb_per_s=20.0)
    now_ms = crossed(estimator, size=10_000, rtt_ms=20.0, bytes_per_ms=1250.0)
    assert estimator.facts().rtt_ms == 0.0, "nothing tells"
    assert estimator.state(now_ms).rtt_ms == 15.0, "what was planned is believed, not the proxy's round trip"
    assert estimator.quiet_ms(now_ms) > 1e6
    estimator.pinged(20.0, now_ms)
    assert estimator.quiet_ms(now_ms + 500) == pytest.approx(500)
    assert estimator.facts().rtt_ms == pytest.approx(20.0)


def test_a_proxy_that_takes_data_no_faster_than_the_link_gives_itself_away_by_being_near() -> None:
    estimator = LinkEstimator(1250.0, 15.0)
    told(estimator, 900.0, min_rtt_ms=0.05, mb_per_s=1.25)
    now_ms = crossed(estimator, size=100_000, rtt_ms=20.0, bytes_per_ms=1250.0)
    assert estimator.facts().rtt_ms == 0.0
    assert estimator.state(now_ms).rtt_ms == 15.0


def test_frames_within_a_packet_make_the_estimate_careful_and_the_report_says_not_known() -> None:
    """A round trip that got longer looks the same."""
    estimator = LinkEstimator(5000.0, 10.0)
    estimator.pinged(10.0, 900.0)
    now_ms = crossed(estimator, size=1000, rtt_ms=40.0, bytes_per_ms=5000.0)
    assert estimator.state(now_ms).bytes_per_ms < 100
    assert estimator.facts().goodput_mbps == 0.0


def test_small_frames_win_over_a_proxy_s_round_trip() -> None:
    estimator = LinkEstimator(1250.0, 10.0)
    told(estimator, 900.0, min_rtt_ms=0.1, mb_per_s=200.0)
    crossed(estimator, size=40, rtt_ms=25.0, bytes_per_ms=1250.0)
    assert estimator.facts().rtt_ms == pytest.approx(25.0, abs=0.1)


def test_no_round_trip_is_longer_than_a_frame_took_or_shorter_than_the_kernel_saw() -> None:
    estimator = LinkEstimator(1250.0, 50.0)
    now_ms = crossed(estimator, size=10_000, rtt_ms=4.0, bytes_per_ms=10_000.0)
    assert estimator.state(now_ms).rtt_ms == pytest.approx(5.0)
    estimator.pinged(9.0, now_ms)
    assert estimator.state(now_ms).rtt_ms == pytest.approx(5.0)
    told(estimator, now_ms, min_rtt_ms=6.0)  # the tail said that it took longer than it did
    assert estimator.state(now_ms).rtt_ms == 6.0


def test_a_rate_told_long_ago_is_believed_but_no_longer_reported() -> None:
    estimator = LinkEstimator(5000.0, 20.0)
    told(estimator, 900.0, min_rtt_ms=20.0, mb_per_s=0.4)
    now_ms = crossed(estimator, size=10_000, rtt_ms=20.0, bytes_per_ms=500.0)
    told(estimator, now_ms + KNOWN_S * 1e3 + 1, min_rtt_ms=20.0, mb_per_s=0.4)
    assert estimator.facts().goodput_mbps == 0.0
    assert estimator.facts().rtt_ms == pytest.approx(20.0)
    assert estimator.state(now_ms).bytes_per_ms == pytest.approx(500.0, rel=0.1)


def test_a_small_frame_given_up_does_not_leave_a_slow_link_behind() -> None:
    """Eight bytes that never came say that the link is silent now; they would never say that it is fast again."""
    estimator = LinkEstimator(5000.0, 20.0)
    estimator.gave_up(estimator.sent(8, 0.0), 500.0)
    assert estimator.state(500.0).bytes_per_ms < 1.0
    now_ms = crossed(estimator, size=8, rtt_ms=20.0, bytes_per_ms=5000.0, frames=1)
    assert estimator.state(now_ms).bytes_per_ms == 5000.0


def test_small_frames_say_that_a_link_that_was_slow_is_no_longer() -> None:
    """A head that sends a few bytes because the link was slow must see that it healed."""
    estimator = LinkEstimator(5.0, 20.0)
    now_ms = crossed(estimator, size=60, rtt_ms=20.0, bytes_per_ms=5000.0)
    assert estimator.state(now_ms).bytes_per_ms > 50
    assert estimator.facts().goodput_mbps == 0.0


def test_loss_is_the_share_of_segments_sent_again_since_the_connection_was_seen_first() -> None:
    estimator = LinkEstimator(5000.0, 20.0)
    told(estimator, 0.0, sent=1000, resent=500)
    assert estimator.facts().loss == 0.0, "what was before says nothing of now"
    told(estimator, 1000.0, sent=1090, resent=509)
    assert estimator.facts().loss == pytest.approx(0.1)
    told(estimator, 2000.0, sent=1100, resent=512)
    assert estimator.facts().loss == pytest.approx(0.12)


def test_loss_is_forgotten_and_a_new_connection_counts_anew() -> None:
    estimator = LinkEstimator(5000.0, 20.0)
    told(estimator, 0.0, sent=1000)
    told(estimator, 1000.0, sent=1010, resent=5)
    told(estimator, 2000.0, sent=10, resent=1)  # the counts went back: it was opened again
    assert estimator.facts().loss == pytest.approx(6 / 20)
    told(estimator, 2000.0 + LOSS_WINDOW_S * 1e3 + 1, sent=10, resent=1)
    assert estimator.facts().loss == 0.0


def test_a_tail_that_comes_and_goes_is_not_counted_twice() -> None:
    estimator = LinkEstimator(5000.0, 20.0)
    told(estimator, 0.0, sent=1000)
    estimator.kernel_told({}, 1000.0)
    told(estimator, 2000.0, sent=1010, resent=1)
    told(estimator, 3000.0, sent=4, resent=2, peer=OTHER)
    assert estimator.facts().loss == 0.0
    told(estimator, 4000.0, sent=8, resent=3, peer=OTHER)
    assert estimator.facts().loss == pytest.approx(0.25)


def test_more_resent_than_sent_is_all_lost() -> None:
    estimator = LinkEstimator(5000.0, 20.0)
    told(estimator, 0.0, sent=1)
    told(estimator, 1.0, sent=2, resent=40)
    assert estimator.facts().loss == 1.0


def test_kernel_facts_that_end_are_not_believed_any_longer() -> None:
    estimator = LinkEstimator(5000.0, 10.0)
    told(estimator, 0.0, min_rtt_ms=40.0)
    assert estimator.facts().rtt_ms == 40.0
    estimator.kernel_told({}, 1000.0)
    assert estimator.facts().rtt_ms == 0.0
    assert estimator.state(1000.0).rtt_ms == 10.0
