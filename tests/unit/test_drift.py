"""Drift: noticed in time, not imagined on a line whose frames resemble each other, and not forgotten by a restart."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, norm

from services.router.drift.changes import ALARM, BLOCK, LEAST_REFERENCE, QUIET, FlagChange
from services.router.drift.watches import MAX_NAME, MAX_STATE_BYTES, Drift, Kind, Levels, Watches
from splitmesh.errors import MeshError, Reason

LEVELS = Levels(unusual=0.01, disagreement=0.01)
GRID = np.linspace(-5, 5, 2001)


def eases(
    rng: np.random.Generator, n: int, mean: float = 0.9, *, memory: float = 0.8, spread: float = 0.1
) -> np.ndarray:
    """Of a line: beta distributed, every one ``memory`` like the one before (an AR(1) behind them)."""
    noise = rng.standard_normal(n) * math.sqrt(1 - memory**2)
    hidden = np.empty(n)
    state = rng.standard_normal()
    for i in range(n):
        state = memory * state + noise[i]
        hidden[i] = state
    size = mean * (1 - mean) / spread**2 - 1
    return np.asarray(np.interp(hidden, GRID, beta.ppf(norm.cdf(GRID), mean * size, (1 - mean) * size)))


def runs(rng: np.random.Generator, n: int, share: float, length: int = 10) -> np.ndarray:
    """Flags of parts that are each seen in ``length`` frames: a part that is odd is so in all of them."""
    return np.repeat(rng.random(n // length + 1) < share, length)[:n]


def fed(watches: Watches, values: np.ndarray, camera: str = "a", label: str = "x", first: int = 0) -> list[Drift]:
    found = []
    for i, value in enumerate(values):
        found += watches.saw(camera, label, ease=float(value), at=float(first + i))
    return found


@pytest.mark.parametrize("memory", [0.0, 0.8, 0.9])
def test_a_stable_line_raises_no_alarm_in_ten_thousand_samples(memory: float) -> None:
    rng, watches, found = np.random.default_rng(1), Watches(LEVELS), []
    n = 12_000
    strange, wrong = runs(rng, n, 0.01), rng.random(n) < 0.01
    for i, ease in enumerate(eases(rng, n, memory=memory)):
        disagreed = bool(wrong[i]) if i % 10 == 0 else None
        found += watches.saw("a", "x", ease=float(ease), unusual=bool(strange[i]), disagreed=disagreed, at=float(i))
    assert found == []


@pytest.mark.parametrize(("memory", "within"), [(0.0, 150), (0.8, 200), (0.9, 300)])
def test_a_drop_of_the_ease_is_noticed_within_200_samples_or_300_where_they_hardly_change(
    memory: float, within: int
) -> None:
    for seed in range(8):
        rng, watches = np.random.default_rng(seed), Watches(LEVELS)
        assert fed(watches, eases(rng, 1000 + 37 * seed, memory=memory)) == []
        found = fed(watches, eases(rng, within, 0.7, memory=memory))
        own = [one for one in found if one.camera == "a"]
        assert [one.kind for one in own] == [Kind.EASE]
        assert own[0].before == pytest.approx(0.9, abs=0.05)
        assert own[0].now < 0.8
        assert {one.camera for one in found} == {"a", None}


def test_a_rise_is_noticed_as_well_and_a_drift_that_creeps_too() -> None:
    rng = np.random.default_rng(3)
    risen = Watches(LEVELS)
    fed(risen, eases(rng, 1000, 0.7))
    assert any(one.now > one.before for one in fed(risen, eases(rng, 300, 0.9)))
    creeping = Watches(LEVELS)
    fed(creeping, eases(rng, 2500))
    steps = np.linspace(0, 0.25, 4000)
    found = fed(creeping, np.clip(eases(rng, 4000) - steps, 0, 1))
    assert any(one.now < one.before - 0.04 for one in found)


def test_after_an_alarm_the_new_mean_is_usual_and_the_next_drop_an_alarm_again() -> None:
    rng, watches = np.random.default_rng(4), Watches(LEVELS)
    fed(watches, eases(rng, 1000))
    assert len(fed(watches, eases(rng, 3000, 0.7))) == 2
    again = fed(watches, eases(rng, 300, 0.45))
    assert [one.before for one in again] == pytest.approx([0.7, 0.7], abs=0.05)


def test_an_ease_that_is_undefined_counts_as_the_hardest() -> None:
    watches = Watches(LEVELS)
    fed(watches, np.full(600, 0.9))
    found = fed(watches, np.full(200, math.nan))
    assert {one.kind for one in found} == {Kind.EASE}
    assert all(one.now < 0.5 for one in found)


def test_more_disagreement_is_noticed_within_60_audits() -> None:
    late, now = 0, []
    for seed in range(60):
        rng, watches = np.random.default_rng(seed), Watches(LEVELS)
        for i in range(300):
            assert watches.saw("a", "x", disagreed=bool(rng.random() < 0.01), at=float(i)) == []
        found = [
            one for i in range(60) for one in watches.saw("a", "x", disagreed=bool(rng.random() < 0.2), at=float(i))
        ]
        late += not found
        if found:
            assert found[0].kind is Kind.DISAGREEMENT
            assert (found[0].camera, found[1].camera) == (None, "a")
            assert found[0].before == 0.01
            assert found[0].samples <= 300
            now.append(found[0].now)
    assert late <= 3
    assert np.median(now) == pytest.approx(0.25, abs=0.1)


def test_more_unusual_samples_are_noticed_and_one_odd_part_is_not() -> None:
    rng, watches = np.random.default_rng(5), Watches(LEVELS)
    quiet = [*[False] * 320, *[True] * 16, *[False] * 320]
    assert [one for flag in quiet for one in watches.saw("a", "x", unusual=flag, at=0.0)] == []
    many = runs(rng, 400, 0.3)
    found = [one for flag in many for one in watches.saw("a", "x", unusual=bool(flag), at=0.0)]
    assert found[0].kind is Kind.UNUSUAL
    assert found[0].now > 0.1


def test_an_alarm_of_a_flag_is_repeated_only_after_a_while() -> None:
    change = FlagChange(0.01, 1)
    alarms = [i for i in range(2 * QUIET) if change.add(True)]
    first = alarms[0]
    assert first <= 5
    assert alarms == [first, 2 * first + QUIET + 1]


def test_a_fair_bet_reaches_the_alarm_no_sooner_than_promised() -> None:
    """At the level itself, where the promise is tightest: mean time to a false alarm of at least ALARM audits."""
    flags = np.random.default_rng(6).random(200_000) < 0.05
    change = FlagChange(0.05, 1)
    alarms = sum(change.add(bool(flag)) is not None for flag in flags)
    assert alarms <= len(flags) / ALARM


def test_only_the_camera_and_class_that_drifted_is_named_beside_all() -> None:
    rng, watches = np.random.default_rng(8), Watches(LEVELS)
    before, after = eases(rng, 2000), eases(rng, 400, 0.6)
    found = []
    for i in range(2000):
        found += watches.saw("ab"[i % 2], "x", ease=float(before[i]), at=float(i))
    for i in range(400):
        value = after[i] if i % 2 else before[i]
        found += watches.saw("ab"[i % 2], "x", ease=float(value), at=float(2000 + i))
    assert {(one.camera, one.label) for one in found} <= {("b", "x"), (None, None)}
    assert ("b", "x") in {(one.camera, one.label) for one in found}


def test_the_longest_idle_watch_is_forgotten_and_counted() -> None:
    watches = Watches(LEVELS, max_watches=2)
    for camera in "abac":
        watches.saw(camera, "x", ease=0.9, at=0.0)
    assert (len(watches), watches.forgotten) == (2, 1)
    assert [one["camera"] for one in json.loads(watches.to_json())["watches"]] == [None, "a", "c"]


@pytest.mark.parametrize("cut", [100, 700, 1010, 1300])
def test_after_a_restart_nothing_is_imagined_and_a_drop_is_noticed_as_soon(cut: int) -> None:
    rng = np.random.default_rng(9)
    values = eases(rng, 1500)
    watches = Watches(LEVELS)
    fed(watches, values[:cut])
    restored = Watches.from_json(watches.to_json(), LEVELS)
    assert fed(restored, values[cut:]) == []
    found = fed(restored, eases(rng, 200, 0.7))
    assert {one.camera for one in found} == {"a", None}


def test_a_restart_forgets_no_bet_and_no_pause() -> None:
    rng = np.random.default_rng(10)
    flags = [bool(flag) for flag in rng.random(600) < 0.1]
    whole, watches, found, expected = Watches(LEVELS), Watches(LEVELS), [], []
    for i, flag in enumerate(flags):
        expected += whole.saw("a", "x", unusual=flag, disagreed=flag, at=float(i))
        found += watches.saw("a", "x", unusual=flag, disagreed=flag, at=float(i))
        if i % 7 == 0:
            watches = Watches.from_json(watches.to_json(), LEVELS)
    assert found == expected
    assert expected


def test_other_levels_begin_the_bets_anew_and_fewer_watches_forget() -> None:
    watches = Watches(LEVELS)
    for camera in "abc":
        watches.saw(camera, "x", disagreed=True, unusual=True, at=0.0)
    other = Watches.from_json(watches.to_json(), Levels(unusual=0.01, disagreement=0.3), max_watches=2)
    kept = json.loads(other.to_json())["watches"]
    assert [one["camera"] for one in kept] == [None, "b", "c"]
    assert other.forgotten == 1
    assert kept[1]["disagreement"]["wealth"] == [1.0, 1.0, 1.0]
    assert kept[1]["unusual"]["block"] == 1


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"levels":[0.1,0.1],"forgotten":0,"watches":[]}', b"\xff"])
def test_a_state_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(MeshError, match="state") as caught:
        Watches.from_json(data, LEVELS)
    assert caught.value.reason is Reason.FIELD_INVALID


def test_a_state_with_missing_bets_impossible_numbers_or_too_many_bytes_is_refused() -> None:
    good = json.loads(Watches(LEVELS).to_json())
    for change in ({"wealth": [1.0]}, {"wealth": [-1.0, 1.0, 1.0]}, {"runs": [0, 0, -1]}, {"quiet": "soon"}):
        bad = json.loads(json.dumps(good))
        bad["watches"][0]["unusual"].update(change)
        with pytest.raises(MeshError, match="state"):
            Watches.from_json(json.dumps(bad).encode(), LEVELS)
    with pytest.raises(MeshError, match="bytes"):
        Watches.from_json(b" " * (MAX_STATE_BYTES + 1), LEVELS)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1) | st.just(math.nan), max_size=3 * BLOCK), st.booleans())
def test_any_values_can_be_saved_and_read_and_saved_the_same(values: list[float], flag: bool) -> None:
    watches = Watches(LEVELS)
    for value in values:
        watches.saw("a", "x", ease=value, unusual=flag, disagreed=flag, at=0.0)
    saved = json.loads(watches.to_json())
    again = json.loads(Watches.from_json(watches.to_json(), LEVELS).to_json())
    for before, after in zip(saved["watches"], again["watches"], strict=True):
        n = before["ease"]["window_n"]
        assert after["ease"].pop("window") == pytest.approx(before["ease"].pop("window"), abs=1e-9)
        # an odd value stands in the middle
        variance = before["ease"].pop("window_variance") * (1 - n % 2 / max(1, n))
        assert after["ease"].pop("window_variance") == pytest.approx(variance, abs=1e-9)
        assert after == before


def test_nothing_is_said_of_the_ease_before_it_is_known_what_is_usual() -> None:
    watches = Watches(LEVELS)
    assert fed(watches, np.full(LEAST_REFERENCE // 2, 0.9)) == []
    assert fed(watches, np.full(LEAST_REFERENCE // 2, 0.4)) == []


@pytest.mark.parametrize(
    "given",
    [
        {"ease": 1.1},
        {"ease": -0.1},
        {"ease": math.inf},
        {"at": math.nan},
        {"camera": "a" * (MAX_NAME + 1)},
        {"label": "a" * 999},
    ],
)
def test_a_value_out_of_range_is_refused_and_changes_nothing(given: dict[str, object]) -> None:
    watches = Watches(LEVELS)
    before = watches.to_json()
    with pytest.raises(MeshError) as caught:
        watches.saw(**{"camera": "a", "label": "x", "ease": 0.5, "at": 0.0, **given})  # type: ignore[arg-type]
    assert caught.value.fields[0][0] in given
    assert watches.to_json() == before


@pytest.mark.parametrize("level", [0, 1, -0.1, math.nan])
def test_levels_and_bounds_out_of_range_are_refused(level: float) -> None:
    with pytest.raises(MeshError, match="unusual"):
        Levels(unusual=level, disagreement=0.1)
    with pytest.raises(MeshError, match="disagreement"):
        Levels(unusual=0.1, disagreement=level)
    with pytest.raises(MeshError, match="max_watches"):
        Watches(LEVELS, max_watches=0)
