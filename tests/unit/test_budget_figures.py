"""What the benchmarks of budgets and promises call a reaction, and a goal that was met."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from benchmarks.budget import LOOK_S, reaction_s
from benchmarks.budget_site import APPLICATIONS, CLOUD_MS_PER_S, SLOWED, Crossed, Sample, Site
from benchmarks.router_tradeoff import GOAL, LEAST_SENT, Equal, met
from benchmarks.routing_merit import Kept
from benchmarks.routing_promise import HALVES, POPULATION, least_kept
from benchmarks.routing_ways import BEST

LENGTH_S = 30.0
BEGIN_S = LENGTH_S / 3
EACH_MS = APPLICATIONS[0].cloud_ms * SLOWED


def site_with(load: Callable[[float], float]) -> Site:
    """Evenly sent work: ``load`` says how many times what the tail does, by seconds since it was slowed."""
    site = Site(lambda: 0.0, LENGTH_S)
    at_s = BEGIN_S
    while at_s < 2 * BEGIN_S:
        site.crossed.append(Crossed(Sample(at_s, APPLICATIONS[0], 0.5, 1000), at_s, EACH_MS))
        at_s += EACH_MS / (CLOUD_MS_PER_S * load(at_s - BEGIN_S))
    return site


@pytest.mark.parametrize(
    ("load", "low_s", "high_s"),
    [
        (lambda since_s: 3.0 if since_s < 0.6 else 0.8, 0.6, 0.6 + 2 * LOOK_S),
        (lambda since_s: 0.8, LOOK_S, LOOK_S),
        (lambda since_s: 3.0 if since_s < 0.6 or 5.0 < since_s < 6.5 else 0.8, 6.5, 6.5 + 2 * LOOK_S),
        (lambda since_s: 0.8 if since_s < 5.0 else 1.1, LOOK_S, LOOK_S),
        (lambda since_s: 0.8 if since_s % 2.0 < 0.4 else 2.0, math.inf, math.inf),
        (lambda since_s: 1.1, math.inf, math.inf),
    ],
    ids=["reacts", "at once", "too much again later", "a little too much later", "little work now and then", "never"],
)
def test_a_rule_has_reacted_when_the_work_it_sends_stays_within_what_the_tail_does(
    load: Callable[[float], float], low_s: float, high_s: float
) -> None:
    assert low_s - 1e-9 <= reaction_s(site_with(load), LENGTH_S) <= high_s + 1e-9


def compared(best: int, ours: int) -> Equal:
    one = Equal(1)
    one.seen = {BEST: best, "ours": ours}
    one._drawn = {name: np.array([float(count)]) for name, count in one.seen.items()}
    return one


def test_a_goal_for_which_nothing_could_be_compared_is_neither_met_nor_missed() -> None:
    saves, wastes = compared(1000, round(1000 * (1 - GOAL)) - 1), compared(1000, 1000)
    too_few = compared(LEAST_SENT - 1, 0)
    assert (met([too_few]), met([])) == (None, None)
    assert (met([saves, too_few]), met([saves, wastes])) == (True, False)


def test_promises_that_no_case_could_carry_are_neither_kept_nor_broken() -> None:
    kept, broken = (Kept(200, often, answering=200, coverage=0.5, disagreement=0.01) for often in (190, 100))
    assert least_kept([])[0] is None
    least, words = least_kept([(POPULATION, kept)])
    assert least == 0.95
    assert (
        words
        == "least 95.0% where calibration is drawn from the pool, nothing to compare on the other half of the units"
    )
    assert least_kept([(POPULATION, kept), (HALVES, broken)])[0] == 0.5
