"""Who gets a frame, on a clock of the test's own: speed, queues, outliers, and the way back."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from random import Random

import pytest

from splitmesh.client.balance import EJECTED_MS, FEWEST, PROBES, RECENT, Balance, Conduct, Policy, Standing


@dataclass
class Site:
    """Several tails, and frames that each takes its own time for."""

    balance: Balance
    tails: list[Standing]
    now_ms: float = 1000.0
    frames: int = 0

    def send(self, tail: Standing) -> int:
        self.frames += 1
        tail.sent(self.frames, self.now_ms)
        return self.frames

    def answer(self, tail: Standing, took_ms: float, *, times: int = 1, backlog_ms: float = 0.0) -> None:
        """One after the other."""
        for _ in range(times):
            frame = self.send(tail)
            self.now_ms += took_ms
            tail.answered(frame, self.now_ms, backlog_ms)

    def fail(self, tail: Standing, times: int = 1) -> None:
        for _ in range(times):
            tail.failed(self.send(tail), self.now_ms)

    def judge(self) -> list[str]:
        return [why for _, why, _ in self.balance.judge(self.tails, self.now_ms)]

    def chosen(self, draws: int = 300) -> Counter[int | None]:
        return Counter(self.balance.choose(self.tails, self.now_ms) for _ in range(draws))

    def steady(self, latencies: list[float], for_ms: float, every_ms: float = 5.0) -> Counter[int]:
        """Frames at a steady rate, each to who is chosen, answered after that tail's latency; how many each got."""
        got: Counter[int] = Counter()
        flying: list[tuple[float, int, int]] = []
        until = self.now_ms + for_ms
        while self.now_ms < until:
            for due, index, frame in sorted(one for one in flying if one[0] <= self.now_ms):
                self.tails[index].answered(frame, due, 0.0)
            flying = [one for one in flying if one[0] > self.now_ms]
            self.balance.judge(self.tails, self.now_ms)
            index = self.balance.choose(self.tails, self.now_ms)
            assert index is not None
            flying.append((self.now_ms + latencies[index], index, self.send(self.tails[index])))
            got[index] += 1
            self.now_ms += every_ms
        for due, index, frame in sorted(flying):
            self.now_ms = max(self.now_ms, due)
            self.tails[index].answered(frame, due, 0.0)
        return got


def site(tails: int, **policy: object) -> Site:
    return Site(Balance(Policy(**policy), Random(7)), [Standing() for _ in range(tails)])  # type: ignore[arg-type]


def known(tails: int, took_ms: float = 10.0, **policy: object) -> Site:
    """Tails that have all answered as fast."""
    made = site(tails, **policy)
    for tail in made.tails:
        made.answer(tail, took_ms, times=RECENT)
    return made


# who is chosen


def test_the_only_tail_is_chosen_whatever_it_did() -> None:
    one = site(1)
    one.fail(one.tails[0], times=50)
    assert one.judge() == []
    assert one.chosen(1) == {0: 1}


def test_no_tail_no_choice() -> None:
    assert site(0).chosen(1) == {None: 1}


def test_of_two_tails_the_faster_gets_the_frame_until_its_own_queue_makes_it_slower() -> None:
    two = known(2)
    two.answer(two.tails[0], 30.0, times=RECENT)
    assert two.chosen().keys() == {1}
    for _ in range(6):
        two.send(two.tails[1])
    assert two.chosen().keys() == {0}


def test_a_tail_that_says_it_has_a_queue_gets_fewer_until_the_queue_must_be_gone() -> None:
    two = known(2)
    two.answer(two.tails[0], 9.0, backlog_ms=200.0)
    assert two.chosen().keys() == {1}
    two.now_ms += 201
    assert two.chosen().keys() == {0}


def test_the_worst_of_many_is_never_the_better_of_two() -> None:
    many = known(5)
    many.answer(many.tails[3], 15.0)
    assert 3 not in many.chosen(2000)
    shares = many.steady([10, 10, 10, 10, 10], for_ms=5000)
    assert min(shares.values()) > shares.total() / 20


def test_a_rise_is_believed_at_once_and_a_fall_slowly() -> None:
    one = known(1).tails[0]
    made = Site(Balance(Policy(), Random(0)), [one], now_ms=10_000.0)
    made.answer(one, 100.0)
    assert one.latency_ms(made.now_ms) == 100.0
    made.answer(one, 10.0)
    assert 90 < one.latency_ms(made.now_ms) < 100
    made.answer(one, 10.0, times=600)
    assert one.latency_ms(made.now_ms) < 20


def test_a_frame_that_is_out_for_long_counts_before_it_is_answered() -> None:
    two = known(2)
    two.send(two.tails[0])
    two.now_ms += 300
    assert two.tails[0].latency_ms(two.now_ms) == 300
    assert two.chosen().keys() == {1}


def test_a_new_tail_gets_one_frame_to_begin_with_and_more_when_it_has_answered() -> None:
    three = known(3)
    three.tails[0] = fresh = Standing()
    assert 0 in three.chosen()
    frame = three.send(fresh)
    assert 0 not in three.chosen()
    three.now_ms += 8
    fresh.answered(frame, three.now_ms, 0.0)
    assert 0 in three.chosen()


def test_what_the_first_answers_pay_for_warming_up_is_not_held_against_a_tail() -> None:
    here = known(2, took_ms=2.0)
    cold = Standing()
    here.tails.append(cold)
    here.answer(cold, 200.0)
    assert here.chosen().get(2, 0) > 150  # drawn two times of three, and then the one that is asked
    here.answer(cold, 2.0, times=FEWEST - 1)
    assert cold.score(here.now_ms) == pytest.approx(2.0)
    here.answer(cold, 200.0)
    assert here.chosen().get(2, 0) == 0


def test_a_tail_that_was_slow_is_asked_again_some_day() -> None:
    two = known(2, eject_factor=0.0)
    two.answer(two.tails[0], 150.0, times=RECENT)
    assert two.steady([10, 10], for_ms=2000)[0] == 0
    assert two.steady([10, 10], for_ms=30_000)[0] > 100


def test_a_tail_that_refused_gets_nothing_until_it_said_and_then_as_before() -> None:
    two = known(2)
    first, second = two.tails
    first.refused(two.send(first), two.now_ms, 0.25, 0.0)
    assert two.chosen().keys() == {1}
    second.refused(two.send(second), two.now_ms, 0.5, 0.0)
    assert two.chosen().keys() == {None}
    assert (first.held_ms(two.now_ms), second.held_ms(two.now_ms)) == (250, 500)
    two.now_ms += 251
    assert two.chosen().keys() == {0}
    assert two.judge() == []


def test_without_latencies_the_tail_with_the_fewest_frames_is_chosen() -> None:
    two = known(2, by_latency=False)
    two.answer(two.tails[0], 500.0, times=RECENT)
    two.send(two.tails[1])
    assert two.chosen().keys() == {0}


# outliers


def test_a_tail_slowed_ten_times_loses_nearly_all_frames_within_a_second() -> None:
    three = known(3)
    before = three.steady([10, 10, 10], for_ms=2000)
    assert min(before.values()) > 50
    slowing = three.steady([10, 10, 100], for_ms=1000)
    assert slowing[2] <= 0.05 * slowing.total()
    after = three.steady([10, 10, 100], for_ms=10_000)
    assert after[2] <= 0.01 * after.total()


def test_failures_in_a_row_eject_and_an_answer_in_between_does_not() -> None:
    two = known(2)
    for _ in range(4):
        two.fail(two.tails[0], times=FEWEST - 1)
        two.answer(two.tails[0], 10.0, times=5)
    assert two.judge() == []
    two.fail(two.tails[0], times=FEWEST)
    assert two.judge() == ["failures in a row"]
    assert two.chosen().keys() == {1}


def test_a_tail_that_fails_many_of_its_frames_is_ejected_and_not_when_all_do() -> None:
    two = known(2)
    for _ in range(8):
        two.fail(two.tails[0])
        two.answer(two.tails[0], 10.0)
    (why,) = two.judge()
    assert "failed" in why
    two = known(2)
    for _ in range(8):
        for tail in two.tails:
            two.fail(tail)
            two.answer(tail, 10.0)
    assert two.judge() == []


def test_a_tail_that_finds_fault_with_every_frame_is_ejected_unless_the_others_do_too() -> None:
    two = known(2)
    for _ in range(20):
        two.tails[0].faulted(two.send(two.tails[0]), 0.0, two.now_ms)
    (why,) = two.judge()
    assert "failed" in why
    two = known(2)
    for _ in range(20):
        for tail in two.tails:
            tail.faulted(two.send(tail), 0.0, two.now_ms)
    assert two.judge() == []


def test_nobody_is_ejected_for_frames_that_expire_everywhere_at_once() -> None:
    four = known(4)
    flying = [(tail, four.send(tail)) for _ in range(6) for tail in four.tails]
    for tail, frame in flying:
        four.now_ms += 5
        tail.expired(frame, four.now_ms)
        assert four.judge() == []


def test_faulty_frames_and_deadlines_nobody_could_keep_are_not_the_tails_failure() -> None:
    two = known(2)
    for _ in range(20):
        for tail in two.tails:
            tail.faulted(two.send(tail), 0.0, two.now_ms)
        frame = two.send(two.tails[0])
        two.now_ms += 5
        two.tails[0].expired(frame, two.now_ms)
    assert two.judge() == []


def test_a_tail_that_never_answers_is_ejected_by_expired_deadlines() -> None:
    two = known(2)
    for _ in range(FEWEST):
        frame = two.send(two.tails[0])
        two.now_ms += 500
        two.tails[0].expired(frame, two.now_ms)
    assert two.judge() == ["failures in a row"]


def test_a_tail_whose_frames_others_answer_first_again_and_again_is_ejected() -> None:
    two = known(2)
    for _ in range(FEWEST):
        frame = two.send(two.tails[0])
        two.now_ms += 25
        two.tails[0].beaten(frame, two.now_ms)
    assert two.judge() == ["failures in a row"]


def test_a_tail_is_not_slow_for_having_been_sent_much_at_once() -> None:
    two = known(2)
    crowd = [two.send(two.tails[0]) for _ in range(30)]
    for frame in crowd:
        two.now_ms += 10
        two.tails[0].answered(frame, two.now_ms, 0.0)
    two.answer(two.tails[1], 10.0, times=RECENT)
    assert two.judge() == []


def test_frames_that_are_out_eject_a_silent_tail_and_nobody_when_the_link_stands_still_for_all() -> None:
    three = known(3)
    for _ in range(FEWEST):
        for tail in three.tails:
            three.send(tail)
    three.now_ms += 400
    assert three.judge() == []
    three = known(3)
    for _ in range(FEWEST):
        three.send(three.tails[1])
    three.now_ms += 400
    (why,) = three.judge()
    assert "slower" in why
    assert three.tails[1].conduct is Conduct.EJECTED


@pytest.mark.parametrize(("tails", "most"), [(1, 0), (2, 1), (3, 1), (4, 2), (7, 3)])
def test_at_most_half_of_the_tails_are_ejected(tails: int, most: int) -> None:
    made = known(tails)
    for tail in made.tails:
        made.fail(tail, times=20)
    for _ in range(3):
        made.judge()
    assert sum(tail.conduct is Conduct.EJECTED for tail in made.tails) <= most
    assert made.chosen(50)[None] == 0


def test_an_ejected_tail_is_better_than_none() -> None:
    two = known(2)
    two.fail(two.tails[0], times=FEWEST)
    two.judge()
    two.tails.pop()
    assert two.chosen(1) == {0: 1}


def test_nobody_is_ejected_where_the_operator_wants_none() -> None:
    two = known(2, eject_factor=0.0)
    two.fail(two.tails[0], times=50)
    assert two.judge() == []


# the way back


def _ejected() -> Site:
    two = known(2)
    two.fail(two.tails[0], times=FEWEST)
    assert two.judge()
    return two


def test_a_tail_comes_back_with_one_frame_at_a_time_until_a_few_went_well() -> None:
    two = _ejected()
    back = two.tails[0]
    two.now_ms += EJECTED_MS[0] - 1
    two.judge()
    assert back.conduct is Conduct.EJECTED
    two.now_ms += 1
    for _ in range(PROBES):
        two.judge()
        assert back.conduct is Conduct.PROBED
        crowd = [two.send(two.tails[1]) for _ in range(9)]
        assert two.chosen().keys() == {0}
        frame = two.send(back)
        assert two.chosen().keys() == {1}
        two.now_ms += 10
        back.answered(frame, two.now_ms, 0.0)
        for waiting in crowd:
            two.tails[1].answered(waiting, two.now_ms, 0.0)
    assert back.conduct is Conduct.OPEN


@pytest.mark.parametrize("how", ["fails", "slow", "beaten", "silent"])
def test_one_bad_probe_ejects_again_for_twice_as_long_up_to_a_limit(how: str) -> None:
    two = _ejected()
    back, away_ms = two.tails[0], EJECTED_MS[0]
    for _ in range(8):
        two.now_ms += away_ms
        two.judge()
        assert back.conduct is Conduct.PROBED
        if how == "fails":
            two.fail(back)
        elif how == "slow":
            two.answer(back, 200.0)
        else:
            frame = two.send(back)
            two.now_ms += 200
            if how == "beaten":
                back.beaten(frame, two.now_ms)
        away_ms = min(2 * away_ms, EJECTED_MS[1])
        ((who, _, for_ms),) = two.balance.judge(two.tails, two.now_ms)
        assert (who, for_ms) == (back, away_ms)
        assert back.conduct is Conduct.EJECTED
        if how == "silent":
            back.given_up(frame, two.now_ms)
        two.answer(two.tails[1], 10.0)


def test_a_tail_that_does_well_for_long_is_ejected_for_a_short_time_again() -> None:
    two = _ejected()
    for _ in range(3):
        two.now_ms += 2 * EJECTED_MS[1]
        two.judge()
        two.answer(two.tails[0], 10.0, times=PROBES)
        two.now_ms += EJECTED_MS[1]
        two.answer(two.tails[1], 10.0, times=RECENT)
        two.fail(two.tails[0], times=FEWEST)
        ((_, _, for_ms),) = two.balance.judge(two.tails, two.now_ms)
        assert for_ms == EJECTED_MS[0]


def test_a_tail_whose_stream_broke_is_probed_when_it_is_back() -> None:
    two = known(2)
    two.fail(two.tails[0])
    two.tails[0].connected()
    assert two.tails[0].conduct is Conduct.PROBED
    two.tails[1].connected()
    assert two.tails[1].conduct is Conduct.OPEN
