"""Who is audited: the share is kept, every stratum is seen, rare ones more often, and all of it is bounded."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitmesh.errors import MeshError, Reason
from splitmesh.routing.audit import EASE_BINS, MAX_NAME, REST, Auditor, Counts, Stratum, ease_bin, merge, stratum_of

SHARES = {"common": 0.9, "seldom": 0.08, "rare": 0.02}
COUNTS = st.builds(
    lambda accepted, audited, part: Counts(accepted, audited, int(part * audited)),
    st.integers(0, 1000),
    st.integers(0, 50),
    st.floats(0, 1),
)
STRATA = st.builds(Stratum, st.sampled_from("abc"), st.sampled_from("xy"), st.integers(0, 7)) | st.just(REST)


def labels(n: int, seed: int = 0) -> list[str]:
    return [str(label) for label in np.random.default_rng(seed).choice(list(SHARES), n, p=list(SHARES.values()))]


def taken(auditor: Auditor, of: list[str], first: int = 0) -> list[bool]:
    return [auditor.take("line", label, 0.99, f"frame {first + i}") for i, label in enumerate(of)]


@pytest.mark.parametrize("share", [0.01, 0.02, 0.3, 1.0])
def test_in_the_long_run_the_share_is_audited(share: float) -> None:
    auditor = Auditor(share, seed=1)
    number = sum(taken(auditor, labels(20_000)))
    assert number == auditor.taken
    assert number == pytest.approx(share * auditor.seen, abs=25)


def test_of_every_period_of_a_stratum_the_first_sample_is_audited() -> None:
    auditor, of = Auditor(0.02, seed=2), labels(20_000, 1)
    found = taken(auditor, of)
    for label in SHARES:
        own = [one for one, name in zip(found, of, strict=True) if name == label]
        assert all(own[::200])


def test_rare_strata_are_audited_more_often_and_common_ones_still() -> None:
    auditor, of = Auditor(0.02, seed=3), labels(40_000, 2)
    audited: Counter[str] = Counter()
    seen = Counter(of)
    for label, one in zip(of, taken(auditor, of), strict=True):
        audited[label] += one
    rates = {label: audited[label] / seen[label] for label in SHARES}
    assert rates["rare"] > 2.5 * rates["common"]
    assert rates["rare"] > rates["seldom"] > rates["common"] > 0.01
    assert auditor.taken <= 0.02 * auditor.seen + 5


def test_the_same_calls_give_the_same_answers_and_another_seed_others() -> None:
    of = labels(5000, 3)
    first, again, other = (taken(Auditor(0.05, seed), of) for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_the_key_decides_and_no_rhythm_of_the_line_does() -> None:
    of = ["common"] * 20_000
    auditor = Auditor(0.05, seed=4)
    places = Counter(i % 20 for i, one in enumerate(taken(auditor, of)) if one)
    # the floor takes every 80th; the draws are spread over all places of a rhythm of 20 samples
    assert min(places[place] for place in range(1, 20)) >= 15
    keys = Auditor(0.05, seed=4)
    others = [keys.take("line", "common", 0.99, f"other {i}") for i in range(5000)]
    assert others != taken(Auditor(0.05, seed=4), of[:5000])


def test_ever_new_strata_cost_no_more_than_one_audit_each_beyond_the_share() -> None:
    auditor = Auditor(0.01, seed=5, max_strata=32)
    for i in range(5000):
        auditor.take(f"camera {i}", "x", 0.9, str(i))
        assert auditor.taken <= 0.01 * auditor.seen + 32 + 5
    assert len(auditor.counts()) == 32
    assert sum(one.accepted for one in auditor.counts().values()) == 5000


def test_a_stratum_that_had_to_wait_for_its_floor_gets_it_once_the_account_has_recovered() -> None:
    auditor = Auditor(0.1, seed=6, max_strata=4)
    for i in range(200):
        auditor.take(f"camera {i}", "x", 0.9, str(i))
    assert any(auditor.take("late", "x", 0.9, f"late {i}") for i in range(25))


def test_the_longest_idle_stratum_goes_to_the_rest_with_its_counts_and_late_answers() -> None:
    auditor = Auditor(0.5, seed=1, max_strata=3)
    for camera in ("a", "b", "a", "c"):
        auditor.take(camera, "x", 0.9, camera)
    auditor.answered("b", "x", 0.9, disagreed=True)
    found = auditor.counts()
    assert set(found) == {stratum_of("a", "x", 0.9), stratum_of("c", "x", 0.9), REST}
    assert found[REST] == Counts(accepted=1, audited=1, disagreed=1)


def test_counts_begin_anew_after_a_drain_and_add_up_to_the_same() -> None:
    auditor = Auditor(0.2, seed=1)
    taken(auditor, ["x"] * 10)
    first = auditor.drain()
    auditor.answered("line", "x", 0.99, disagreed=True)
    auditor.answered("line", "x", 0.99, disagreed=False)
    taken(auditor, ["x"] * 5, first=10)
    second = auditor.drain()
    own = stratum_of("line", "x", 0.99)
    assert first == {own: Counts(10)}
    assert second == {own: Counts(5, 2, 1)}
    assert merge(first, second) == {own: Counts(15, 2, 1)}
    assert auditor.drain() == {}


def test_a_drain_does_not_change_who_is_taken() -> None:
    of = labels(2000)
    whole = taken(Auditor(0.05, 9), of)
    drained = Auditor(0.05, 9)
    parts = taken(drained, of[:1000])
    drained.drain()
    assert parts + taken(drained, of[1000:], first=1000) == whole


def test_without_a_share_samples_are_counted_and_none_is_taken() -> None:
    auditor = Auditor(0, seed=1)
    assert not any(taken(auditor, ["x"] * 500))
    assert auditor.counts() == {stratum_of("line", "x", 0.99): Counts(500)}


@pytest.mark.parametrize(
    ("ease", "expected"),
    [(0, 0), (0.49, 0), (0.5, 1), (0.74, 1), (0.75, 2), (0.99, 6), (1 - 2**-7, 7), (1 - 1e-12, 7), (1, 7)],
)
def test_a_bin_begins_each_time_that_the_distance_to_1_has_halved(ease: float, expected: int) -> None:
    assert ease_bin(ease) == expected


@given(st.floats(0, 1), st.floats(0, 1))
def test_bins_keep_the_order_of_eases(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert 0 <= ease_bin(low) <= ease_bin(high) < EASE_BINS


@pytest.mark.parametrize("ease", [math.nan, -0.1, 1.1, math.inf])
def test_an_ease_that_is_none_is_refused_and_counts_nothing(ease: float) -> None:
    auditor = Auditor(0.01, seed=1)
    with pytest.raises(MeshError, match="ease") as caught:
        auditor.take("line", "x", ease, "key")
    assert caught.value.reason is Reason.FIELD_INVALID
    assert auditor.seen == 0
    assert auditor.counts() == {}


def test_names_without_end_are_refused_and_odd_ones_are_not() -> None:
    with pytest.raises(MeshError, match="camera"):
        Auditor(0.01, seed=1).take("a" * (MAX_NAME + 1), "x", 0.9, "key")
    with pytest.raises(MeshError, match="label"):
        Auditor(0.01, seed=1).answered("a", "x" * (MAX_NAME + 1), 0.9, disagreed=False)
    assert Auditor(0.01, seed=1).take("", "Lötstelle \udc80", 0.9, "\udc80")


@pytest.mark.parametrize("arguments", [{"share": -0.1}, {"share": 1.1}, {"share": math.nan}, {"max_strata": 1}])
def test_arguments_out_of_range_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(MeshError) as caught:
        Auditor(**{"share": 0.01, "seed": 1, **arguments})  # type: ignore[arg-type]
    assert caught.value.fields[0][0] in arguments


@pytest.mark.parametrize("bad", [(-1, 0, 0), (5, 1, 2), (5, 1, -1)])
def test_counts_that_cannot_be_are_refused(bad: tuple[int, int, int]) -> None:
    with pytest.raises(MeshError, match="cannot be"):
        Counts(*bad)


@given(st.lists(st.dictionaries(STRATA, COUNTS, max_size=8), max_size=4), st.integers(2, 12))
def test_merging_loses_nothing_is_bounded_and_keeps_the_largest(given: list[dict[Stratum, Counts]], most: int) -> None:
    merged = merge(*given, max_strata=most)
    every = [one for counts in given for one in counts.values()]
    assert len(merged) <= most
    for name in ("accepted", "audited", "disagreed"):
        assert sum(getattr(one, name) for one in merged.values()) == sum(getattr(one, name) for one in every)
    assert merge(*reversed(given), max_strata=most) == merged
    whole = merge(*given, max_strata=100)
    kept = [one.accepted for stratum, one in merged.items() if stratum != REST]
    lost = [one.accepted for stratum, one in whole.items() if stratum not in merged]
    assert not lost or min(kept, default=0) >= max(lost)


def test_another_share_holds_from_then_on_and_no_count_is_lost() -> None:
    auditor, of = Auditor(0.0, seed=5), labels(20_000, 4)
    assert not any(taken(auditor, of))
    auditor.set_share(0.05)
    assert sum(taken(auditor, of, 20_000)) == pytest.approx(1000, abs=25)
    auditor.set_share(0.0)
    assert not any(taken(auditor, of, 40_000))
    assert sum(one.accepted for one in auditor.counts().values()) == 60_000
    with pytest.raises(MeshError):
        auditor.set_share(1.1)
