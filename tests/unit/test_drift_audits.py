"""Audits by version and camera, and on the wire what is not known is not there."""

from __future__ import annotations

from services.router.drift.audits import MAX_CAMERAS, audits_now
from services.router.drift.inbox import audits_from, audits_to
from services.router.drift.wire import drift_to
from splitmesh.routing.audit import REST, Counts, Stratum


def test_the_sum_over_all_holds_what_no_camera_is_named_for_and_comes_first() -> None:
    counts = {
        Stratum("b", "OK", 1): Counts(100, 10, 5),
        Stratum("a", "OK", 1): Counts(100, 10, 0),
        Stratum("a", "NG", 2): Counts(100, 10, 0),
        Stratum("", "OK", 1): Counts(100, 10, 0),
        REST: Counts(100, 10, 0),
    }
    found = audits_now({2: counts, 3: {}})
    assert [(one.version, one.camera, one.estimate.n_audited) for one in found] == [
        (2, "", 50),
        (2, "a", 20),
        (2, "b", 10),
    ]
    assert found[0].estimate.rate == 0.1
    assert found[2].estimate.low < 0.5 < found[2].estimate.high


def test_of_many_cameras_those_with_most_audits_are_named() -> None:
    counts = {Stratum(f"c{number:03}", "OK", 1): Counts(100, number, 0) for number in range(1, MAX_CAMERAS + 11)}
    cameras = [one.camera for one in audits_now({1: counts})]
    assert cameras == ["", *(f"c{number:03}" for number in range(11, MAX_CAMERAS + 11))]


def test_a_rate_that_nobody_knows_is_left_out_of_the_message() -> None:
    message = drift_to([], audits_now({1: {Stratum("a", "OK", 1): Counts(7, 0, 0)}}), {1: 9})
    assert not message.audits[0].HasField("rate")
    assert (message.audits[0].low, message.audits[0].high, message.audits[0].accepted) == (0.0, 1.0, 7)
    assert dict(message.sights) == {1: 9}


def test_sums_are_as_they_were_after_being_saved() -> None:
    counts = {Stratum("a, b", 'N"G', 3): Counts(5, 4, 3), REST: Counts(1, 1, 0)}
    assert audits_from(audits_to(counts)) == counts
