"""Streams for the benchmark of drift: what they draw, and a head and a router without what is between them."""

from __future__ import annotations

from itertools import islice

import numpy as np

from benchmarks.drift_streams import REPORT, Pool, Watched, alike, by_units
from services.router.drift.events import State
from services.router.goals import Goals

GOALS = Goals(0.05, 0.1, 0.1)


def pool(*, wrong: float = 0.0, strange: float = 0.0, n: int = 400) -> Pool:
    """So many wrong and so many strange, evenly; four pictures a unit."""
    numbers = np.arange(n)
    return Pool(
        ease=np.linspace(0.6, 1.0, n).tolist(),
        said=[0] * n,
        whole=(numbers % 100 < wrong * 100).astype(int).tolist(),
        strange=(numbers % 100 < strange * 100).tolist(),
        unit=numbers // 4,
    )


def test_units_come_whole_and_in_a_row() -> None:
    drawn = list(islice(by_units(pool(), np.random.default_rng(1)), 4000))
    groups = np.array(drawn).reshape(-1, 4)
    assert (groups // 4 == groups[:, :1] // 4).all()
    assert len(set(drawn)) > 300


def test_neighbours_in_time_are_alike_and_every_picture_comes_as_often() -> None:
    drawn = np.array(list(islice(alike(pool(), np.random.default_rng(2), 0.95), 60_000)))
    assert np.corrcoef(drawn[:-1], drawn[1:])[0, 1] > 0.9
    assert abs(np.corrcoef(drawn[:-300], drawn[300:])[0, 1]) < 0.1
    shares = np.histogram(drawn, bins=4)[0] / len(drawn)
    assert np.abs(shares - 0.25).max() < 0.06


def test_what_stays_unlike_the_whole_model_is_neither_hard_nor_strange() -> None:
    assert pool(wrong=0.1).disagreement(0.0) == 0.1
    assert pool(wrong=0.1, strange=0.05).disagreement(0.0) == 0.05
    assert pool(wrong=0.1).disagreement(1.1) == 0.0


def test_a_drift_tightens_from_the_next_sample_on_until_somebody_resolves_it() -> None:
    watched = Watched(0.5, GOALS, ("ok", "ng"), seed=1)
    strange = pool(strange=0.5)
    found = [event for sample in range(400) for event in watched.saw(strange, sample)]
    assert found
    assert found[0].state is State.TIGHTENED
    watched.begin()
    for sample in range(REPORT):
        watched.saw(pool(), sample)
    assert watched.stayed == 0
    watched.resolve()
    watched.begin()
    for sample in range(REPORT):
        watched.saw(pool(), sample)
    assert watched.stayed == REPORT


def test_audits_take_their_share_of_what_stays_and_notice_that_the_tail_disagrees() -> None:
    watched = Watched(0.5, GOALS, ("ok", "ng"), seed=1)
    for sample in islice(by_units(pool(), np.random.default_rng(3)), 3000):
        assert watched.saw(pool(), sample) == []
    assert 250 < watched.audits < 350
    assert watched.wrong == 0
    bad = pool(wrong=0.5)
    found = [
        event for sample in islice(by_units(bad, np.random.default_rng(4)), 3000) for event in watched.saw(bad, sample)
    ]
    assert "disagreement" in str(found[0].kind)
    assert watched.wrong > 0
