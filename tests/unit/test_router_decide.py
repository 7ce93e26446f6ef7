"""Single samples of gateways: by a version's policy as its heads would decide, by a rule of their own as Sedna would."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import AsyncMock

import numpy as np
import pytest
from numpy.typing import NDArray

from services.router.decide import Boxes, Classes, OwnRule, by_own_rule, by_policy
from services.router.decide_wire import MAX_SIZE_BYTES, asked_from
from services.router.goals import PolicyOverride
from services.router.parts import Parts, PartsCache, parts_from
from services.router.policy import Policy
from splitmesh.api.routing.v1 import routing_pb2 as pb
from splitmesh.errors import MeshError, Reason
from splitmesh.model.manifest import MANIFEST, OUTCOMES
from splitmesh.routing.gate import ESCALATE_ALL, Why
from tests.integration.small_model import small_manifest
from tests.support.fitted import deferral, strange_beyond
from tests.support.outcomes import outcomes_of

LABELS = ("OK", "NG", "dirt")
PARTS = Parts(LABELS)
POLICY = Policy("joints", 3, 0.8, 0.02, 0.05, 0.01, 0.9, 600, "", 0.015)


def row(*numbers: float) -> NDArray[np.float32]:
    return np.array([numbers], dtype=np.float32)


def classes(*probabilities: float, **more: NDArray[np.float32]) -> Classes:
    return Classes(row(*probabilities), **more)


def boxes(*scores: float) -> Boxes:
    return Boxes(np.array(scores, dtype=np.float32))


def test_a_policys_threshold_parts_easy_from_hard() -> None:
    easy = by_policy(POLICY, PARTS, classes(0.05, 0.9, 0.05), "cam-1")
    hard = by_policy(POLICY, PARTS, classes(0.3, 0.7, 0.0), "cam-1")
    assert (easy.sure, easy.why, easy.answer) == (True, Why.SURE, 1)
    assert easy.worth == pytest.approx(0.1)
    assert (hard.sure, hard.why, hard.threshold) == (False, Why.UNSURE, 0.8)


def test_a_policy_without_a_promise_finds_everything_hard() -> None:
    found = by_policy(replace(POLICY, threshold=ESCALATE_ALL), PARTS, classes(1.0, 0.0, 0.0), "")
    assert (found.sure, found.why) == (False, Why.NO_PROMISE)


@pytest.mark.parametrize(
    "probabilities", [(math.nan, 0.5, 0.5), (1.0, 1.0, 1.0), (2.0, -1.0, 0.0), (0.0, 0.0, 0.0), (math.inf, 0.0, 0.0)]
)
def test_what_is_no_distribution_is_undefined_and_hard(probabilities: tuple[float, ...]) -> None:
    found = by_policy(POLICY, PARTS, classes(*probabilities), "")
    assert (found.sure, found.why, found.worth) == (False, Why.UNDEFINED, 1.0)
    assert math.isnan(found.ease)


def test_a_drifted_camera_or_class_of_a_policy_is_held_to_its_own_threshold() -> None:
    drifted = replace(
        POLICY,
        overrides=(PolicyOverride("cam-1", "NG", ESCALATE_ALL, "drift"), PolicyOverride("cam-2", "", 0.95, "again")),
    )
    sure_defect, sure_good = classes(0.05, 0.9, 0.05), classes(0.9, 0.05, 0.05)
    assert by_policy(drifted, PARTS, sure_defect, "cam-1").why is Why.DRIFTED
    assert by_policy(drifted, PARTS, sure_good, "cam-1").sure
    assert by_policy(drifted, PARTS, sure_good, "cam-2").threshold == 0.95
    assert by_policy(drifted, PARTS, sure_defect, "cam-3").sure


def test_the_deferral_score_reads_features_and_without_them_everything_is_hard() -> None:
    worthy = replace(POLICY, score="deferral", threshold=0.6)
    parts = replace(PARTS, deferral=deferral(features=True))
    given = by_policy(worthy, parts, classes(1.0, 0.0, 0.0, features=row(0.0, 0.0)), "")
    missing = by_policy(worthy, parts, classes(1.0, 0.0, 0.0), "")
    assert given.ease == pytest.approx(1 - given.worth)
    assert (missing.sure, missing.why) == (False, Why.UNDEFINED)


def test_unusual_samples_escalate_and_so_does_what_cannot_be_told() -> None:
    strict = replace(POLICY, escalate_unusual=True)
    parts = replace(PARTS, unusual=strange_beyond(3.0))
    near, far = (classes(0.9, 0.05, 0.05, features=row(at, 0.0)) for at in (0.0, 50.0))
    assert by_policy(strict, parts, near, "").sure
    assert by_policy(strict, parts, far, "").why is Why.UNUSUAL
    unknown = by_policy(strict, parts, classes(0.9, 0.05, 0.05), "")
    assert (unknown.sure, unknown.why, unknown.unusual) == (False, Why.UNUSUAL, None)
    assert by_policy(strict, parts, classes(0.5, 0.5, 0.0), "").why is Why.UNSURE
    loose = replace(strict, escalate_unusual=False)
    assert by_policy(loose, parts, far, "").sure
    assert by_policy(loose, parts, classes(0.9, 0.05, 0.05), "").sure


def test_a_detectors_exit_can_only_answer_that_there_is_nothing() -> None:
    parts = Parts(("nothing", "something"), finding=True)
    assert by_policy(POLICY, parts, classes(0.9, 0.1), "").sure
    assert by_policy(POLICY, parts, classes(0.1, 0.9), "").why is Why.FINDING


@pytest.mark.parametrize(
    ("said", "reason", "detail"),
    [
        (classes(0.5, 0.5), Reason.TENSOR_SHAPE_MISMATCH, "2 classes, joints v3 has 3"),
        (classes(0.5, 0.5, 0.0, logits=row(1.0, 2.0)), Reason.TENSOR_SHAPE_MISMATCH, "2 logits"),
        (classes(0.9, 0.1, 0.0, features=row(1.0)), Reason.TENSOR_SHAPE_MISMATCH, "features"),
        (boxes(0.9), Reason.FIELD_INVALID, "boxes"),
    ],
)
def test_what_does_not_fit_the_version_is_refused(said: Classes | Boxes, reason: Reason, detail: str) -> None:
    with pytest.raises(MeshError, match=detail) as caught:
        by_policy(POLICY, replace(PARTS, unusual=strange_beyond(3.0)), said, "")
    assert caught.value.reason is reason


def test_a_version_whose_classes_have_no_names_takes_rows_of_its_own_width_alone() -> None:
    nameless = Parts(classes=3)
    assert by_policy(POLICY, nameless, classes(0.9, 0.1, 0.0), "").sure
    with pytest.raises(MeshError, match="2 classes, joints v3 has 3"):
        by_policy(POLICY, nameless, classes(0.9, 0.1), "")


async def test_how_many_nameless_classes_there_are_is_read_from_the_calibration_outcomes() -> None:
    outcomes = outcomes_of(np.linspace(0.5, 1.0, 10), np.ones(10, dtype=np.bool_))
    manifest = small_manifest().model_copy(update={"task": "raw", "labels": ()})
    found = {OUTCOMES: outcomes.to_bytes(), MANIFEST: manifest.to_json()}
    registry = AsyncMock()
    registry.get_version.return_value = SimpleNamespace(artifacts=found)
    registry.fetch.side_effect = lambda info, name: found[name]
    parts = await parts_from(registry)("joints", 3)
    assert (parts.labels, parts.classes) == ((), outcomes.probabilities.shape[2])


def test_a_sample_that_is_too_large_for_any_link_is_refused() -> None:
    asked = pb.DecideRequest(own=pb.OwnRule(score="margin", threshold=0.5), boxes=pb.BoxScores(scores=[0.5]))
    asked.size_bytes = MAX_SIZE_BYTES
    assert asked_from(asked).size_bytes == MAX_SIZE_BYTES
    asked.size_bytes += 1
    with pytest.raises(MeshError, match="size_bytes") as caught:
        asked_from(asked)
    assert caught.value.reason is Reason.FIELD_INVALID


def test_a_number_equal_to_the_threshold_is_easy_although_it_came_in_fewer_bits() -> None:
    for threshold in (0.7, 0.9, 0.3, 0.95, 1.0):
        assert by_own_rule(OwnRule("threshold", threshold), boxes(threshold)).sure
        rest = 1 - threshold
        assert by_own_rule(OwnRule("max_probability", max(threshold, rest)), classes(threshold, rest)).sure


def test_sednas_miners_find_hard_what_they_find_hard_in_sedna() -> None:
    # CrossEntropy: 1 - entropy / log(classes) of (0.7, 0.3) is 0.119; IBT: share of boxes above its box threshold.
    crossed = by_own_rule(OwnRule("CrossEntropy", 0.5), classes(0.7, 0.3))
    assert crossed.ease == pytest.approx(0.1187, abs=1e-4)
    assert (crossed.sure, crossed.why, crossed.answer) == (False, Why.UNSURE, 0)
    assert by_own_rule(OwnRule("CrossEntropy", 0.1), classes(0.7, 0.3)).sure
    mean = by_own_rule(OwnRule("Threshold", 0.6), boxes(0.9, 0.2))
    assert mean.ease == pytest.approx(0.55)
    assert not mean.sure
    counted = by_own_rule(OwnRule("IBT", 0.5, {"box_threshold": 0.1}), boxes(0.9, 0.2))
    assert (counted.ease, counted.sure) == (1.0, True)


@pytest.mark.parametrize("score", ["CrossEntropy", "max_probability", "margin", "temperature"])
def test_what_sedna_calls_easy_or_trips_over_is_undefined_or_right(score: str) -> None:
    certain = by_own_rule(OwnRule(score, 1.0), classes(1.0, 0.0, 0.0))
    assert (certain.sure, certain.ease) == (True, 1.0)
    for said in (classes(1.0), classes(), classes(math.nan, 1.0)):
        found = by_own_rule(OwnRule(score, 0.0), said)
        assert (found.sure, found.why) == (False, Why.UNDEFINED)


def test_a_picture_without_boxes_is_hard_unless_its_ease_is_stated() -> None:
    nothing = by_own_rule(OwnRule("Threshold", 0.5), boxes())
    assert (nothing.sure, nothing.why, nothing.ease) == (False, Why.UNSURE, 0.0)
    assert by_own_rule(OwnRule("Threshold", 0.5, {"nothing_ease": 1.0}), boxes()).sure
    odd = by_own_rule(OwnRule("Threshold", 0.5), boxes(math.nan))
    assert (odd.sure, odd.why, odd.worth) == (False, Why.UNDEFINED, 1.0)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (OwnRule("guess", 0.5), classes(0.7, 0.3)),
        (OwnRule("Threshold", 0.5), classes(0.7, 0.3)),
        (OwnRule("CrossEntropy", 0.5), boxes(0.7)),
        (OwnRule("deferral", 0.5), classes(0.7, 0.3)),
        (OwnRule("expected_cost", 0.5), classes(0.7, 0.3)),
        (OwnRule("margin", 1.5), classes(0.7, 0.3)),
        (OwnRule("margin", math.nan), classes(0.7, 0.3)),
        (OwnRule("margin", 0.5, {"temperature": 2.0}), classes(0.7, 0.3)),
        (OwnRule("IBT", 0.5, {"box_threshold": 2.0}), boxes(0.7)),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(rule: OwnRule, said: Classes | Boxes) -> None:
    with pytest.raises(MeshError) as caught:
        by_own_rule(rule, said)
    assert caught.value.reason is Reason.FIELD_INVALID


async def test_the_parts_of_few_versions_are_kept_and_each_is_fetched_once_while_it_is() -> None:
    fetched: list[int] = []

    async def fetch(model: str, version: int) -> Parts:
        fetched.append(version)
        if version == 9:
            raise MeshError(Reason.VERSION_NOT_FOUND, "no such version")
        return Parts((model, str(version)))

    cache = PartsCache(fetch, max_kept=2)
    for version in (1, 2, 1, 3, 1, 2):
        assert await cache.labels_of("joints", version) == ("joints", str(version))
    assert fetched == [1, 2, 3, 2]
    for _ in range(2):
        with pytest.raises(MeshError):
            await cache.of("joints", 9)
    assert fetched[-2:] == [9, 9]
