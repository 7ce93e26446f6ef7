"""Whose frames are computed where there is not time for all: hosts played through second by second, by a clock of their own."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import pytest

from edge.head.queue import Job, Queue
from edge.head.shares import ALLOWANCE_S, SATURATED_S, SAVED, CpuShares
from splitmesh.errors import MeshError
from splitmesh.kernel.batch_times import BatchTimes


@dataclass(frozen=True)
class App:
    """Sends frames steadily, so many at once."""

    name: str
    per_s: float
    took_s: float
    deadline_s: float = 1.0
    priority: int = 0
    together: int = 1
    from_s: float = 0.0
    to_s: float = 1e9


class Played:
    """A host's workers, a queue and applications; time goes by as frames come and are done."""

    def __init__(self, apps: Sequence[App], *, workers: int = 1, weights: Mapping[str, float] | None = None) -> None:
        self.now = 0.0
        self.weights = dict(weights or {})
        self.shares = CpuShares(workers, lambda app: self.weights.get(app, 1.0), clock=lambda: self.now)
        self.computed_s: defaultdict[str, float] = defaultdict(float)
        self.waits_s: defaultdict[str, list[float]] = defaultdict(list)
        self.done: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self._queue: Queue[Job] = Queue(workers, self.shares, clock=lambda: self.now)
        self._workers = workers
        self._busy = 0
        self._took = {app.name: BatchTimes() for app in apps}
        self._times = {app.name: app.took_s for app in apps}
        self._numbers = count()
        self._events: list[tuple[float, int, App | Job]] = []
        for app in apps:
            self._after(app.from_s, app)

    def play(self, until_s: float) -> None:
        """Up to this second."""
        while self._events and self._events[0][0] <= until_s:
            self.now, _, what = heapq.heappop(self._events)
            if isinstance(what, App):
                self._frames(what)
            else:
                self._finished(what)
        self.now = until_s

    def forget(self) -> None:
        """Count anew."""
        for counts in (self.computed_s, self.waits_s, self.done, self.lost):
            counts.clear()

    def part(self, app: str) -> float:
        """Of all time that was computed."""
        return self.computed_s[app] / sum(self.computed_s.values())

    def _after(self, at_s: float, what: App | Job) -> None:
        heapq.heappush(self._events, (at_s, next(self._numbers), what))

    def _frames(self, app: App) -> None:
        for _ in range(app.together):
            job = Job(
                expires=self.now + app.deadline_s,
                took=self._took[app.name],
                threads=self._workers,
                priority=app.priority,
                app=app.name,
            )
            try:
                self._queue.add(job)
            except MeshError:
                self.lost[app.name] += 1
                continue
            if self._busy < self._workers:
                self._busy += 1
                self._begin()
        if self.now + 1 / app.per_s < app.to_s:
            self._after(self.now + app.together / app.per_s, app)

    def _begin(self) -> None:
        job, late = self._queue.next(self._busy)
        for one in late:
            self.lost[one.app] += 1
        if job is None:
            self._busy -= 1
            return
        self.waits_s[job.app].append(self.now - job.came)
        self._after(self.now + self._times[job.app], job)

    def _finished(self, job: Job) -> None:
        took_s = self._times[job.app]
        job.took.record(1, took_s)
        self._queue.done(job, took_s, self._busy)
        self.computed_s[job.app] += took_s
        self.done[job.app] += 1
        self._begin()


@pytest.mark.parametrize(
    ("workers", "deadlines_s", "times_s"),
    [
        (1, (1.0, 1.0), (0.02, 0.02)),
        (1, (0.4, 3.0), (0.04, 0.01)),
        (1, (3.0, 0.4), (0.01, 0.04)),
        (4, (1.0, 1.0), (0.02, 0.08)),
        (4, (3.0, 0.4), (0.08, 0.02)),
    ],
)
def test_where_two_ask_for_too_much_each_gets_its_part_by_weight(
    workers: int, deadlines_s: tuple[float, float], times_s: tuple[float, float]
) -> None:
    apps = [
        App(name, 1.5 * workers / took_s, took_s, deadline_s)
        for name, took_s, deadline_s in zip(("one", "three"), times_s, deadlines_s, strict=True)
    ]
    host = Played(apps, workers=workers, weights={"one": 1.0, "three": 3.0})
    host.play(5)
    host.forget()
    host.play(20)
    assert host.part("three") == pytest.approx(0.75, abs=0.03)
    assert sum(host.computed_s.values()) == pytest.approx(15 * workers, rel=0.03), "no time is left unused"


def test_weights_hold_from_the_moment_they_are_changed() -> None:
    host = Played([App("a", 75, 0.02), App("b", 75, 0.02)])
    host.play(10)
    host.forget()
    host.play(20)
    assert host.part("a") == pytest.approx(0.5, abs=0.03)
    host.weights["a"] = 9.0
    host.shares.reweighed()
    host.forget()
    host.play(21)
    assert host.part("a") > 0.8
    host.play(41)
    assert host.part("a") == pytest.approx(0.9, abs=0.03)


def test_a_part_that_is_not_asked_for_is_the_others() -> None:
    host = Played([App("heavy", 100, 0.02), App("light", 10, 0.01)], weights={"light": 10.0})
    host.play(20)
    assert host.part("heavy") == pytest.approx(0.9, abs=0.02)
    assert host.lost["light"] == 0


def test_a_light_application_is_not_delayed_by_a_heavy_one() -> None:
    host = Played([App("heavy", 100, 0.02), App("light", 10, 0.01)])
    host.play(5)
    host.forget()
    host.play(25)
    assert host.done["light"] == pytest.approx(200, abs=2)
    assert host.lost["light"] == 0
    assert max(host.waits_s["light"]) < 0.05, (
        "it waits for the frame that is being computed, not for the heavy one's queue"
    )
    assert min(host.waits_s["heavy"]) > 0.2


def test_while_every_deadline_can_be_kept_the_nearest_goes_first_however_much_that_one_has_had() -> None:
    """A burst of urgent frames, of an application far beyond its part, beside a long queue that has time."""
    urgent = App("urgent", 70, 0.01, deadline_s=0.2, together=7)
    patient = App("patient", 20, 0.01, deadline_s=30.0, together=20)
    host = Played([urgent, patient], weights={"patient": 9.0})
    host.play(30)
    assert not host.lost
    assert host.done["urgent"] == pytest.approx(2100, abs=10)
    assert max(host.waits_s["urgent"]) < 0.08
    assert not host.shares.saturated


def test_a_priority_still_goes_first_within_its_part() -> None:
    host = Played(
        [App("urgent", 40, 0.01, priority=9), App("a", 100, 0.01), App("b", 100, 0.01)], weights={"urgent": 2.0}
    )
    host.play(5)
    host.forget()
    host.play(25)
    assert host.lost["urgent"] == 0
    assert max(host.waits_s["urgent"]) < 0.05
    assert host.part("a") == pytest.approx(host.part("b"), abs=0.03)


def test_nobody_starves_whatever_the_others_priority_and_deadlines() -> None:
    loud = [App(f"loud-{number}", 200, 0.01, deadline_s=0.2, priority=9) for number in range(3)]
    host = Played([*loud, App("quiet", 50, 0.02, deadline_s=2.0)])
    host.play(5)
    host.forget()
    host.play(25)
    assert host.part("quiet") == pytest.approx(0.25, abs=0.03)


def test_who_used_what_nobody_wanted_owes_nothing_and_who_was_idle_has_saved_next_to_nothing() -> None:
    host = Played([App("first", 75, 0.02), App("second", 75, 0.02, from_s=60.0)])
    host.play(60)
    assert host.part("first") == 1.0
    host.forget()
    host.play(61)
    # The newcomer is ahead by what one may save and what may be overdrawn, not by a minute's worth of computing.
    assert host.computed_s["first"] > 0.5 - 2 * SAVED * ALLOWANCE_S
    host.forget()
    host.play(81)
    assert host.part("first") == pytest.approx(0.5, abs=0.03)


def test_when_all_is_done_in_time_again_only_deadlines_count() -> None:
    host = Played([App("heavy", 100, 0.02, to_s=5.0), App("light", 10, 0.01)])
    host.play(5)
    assert host.shares.saturated
    host.play(8 + SATURATED_S)
    assert not host.shares.saturated


def test_an_application_can_have_what_the_others_lately_left_and_its_part_at_least() -> None:
    host = Played(
        [App("other", 30, 0.01, to_s=20.0), App("late", 400, 0.01, from_s=20.0, to_s=40.0)],
        workers=2,
        weights={"mine": 1.0, "late": 3.0},
    )
    assert host.shares.workers_of("mine") == 2.0, "nobody else is here"
    host.play(15)
    assert host.shares.workers_of("mine") == pytest.approx(2.0 - 0.3, abs=0.1), "what the other one leaves"
    host.play(25)
    assert host.shares.workers_of("mine") == pytest.approx(2 / 4, abs=0.05), "its part: the other one takes all it gets"
    assert host.shares.workers_of("late") == pytest.approx(2.0, abs=0.05)
    host.play(45)
    assert host.shares.workers_of("mine") == pytest.approx(2.0, abs=0.1), "the others have gone"


def test_a_frame_that_is_given_up_takes_nobodys_part() -> None:
    now = 0.0
    shares = CpuShares(1, clock=lambda: now)
    queue: Queue[Job] = Queue(1, shares, clock=lambda: now)
    jobs = [Job(expires=10.0, took=BatchTimes(), threads=1, app=app) for app in ("a", "a", "b")]
    for job in jobs:
        queue.add(job)
    queue.drop(jobs[1])
    assert len(queue) == 2
    assert not shares.saturated, "it was given up, not late"
    now = 11.0
    queue.drop(jobs[2])
    assert shares.saturated, "it was given up when its time was over"
    assert queue.next(1) == (None, [jobs[0]])
    queue.drop(jobs[0])
    assert len(queue) == 0
    assert shares.workers_of("c") == 1.0


def test_a_job_of_nobody_goes_behind_all_who_have_a_part() -> None:
    now = 0.0
    shares = CpuShares(1, clock=lambda: now)
    queue: Queue[Job] = Queue(1, shares, clock=lambda: now)
    nobodys, somebodys = (
        Job(expires=expires, took=BatchTimes(), threads=1, app=app) for expires, app in ((1, ""), (2, "a"))
    )
    queue.add(nobodys)
    queue.add(somebodys)
    shares.missed()
    assert queue.next(1)[0] is somebodys
    assert queue.next(1)[0] is nobodys
