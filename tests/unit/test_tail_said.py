"""What the whole model's outputs say beside an exit's: classes of a classifier, findings of a detector."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, cast

import numpy as np
import pytest

from edge.head.active import ActiveModel
from edge.head.decided import TailSaid
from edge.head.fill import tail_said
from splitmesh.client.registry import VersionInfo
from splitmesh.errors import MeshError, Reason
from splitmesh.model.manifest import Manifest
from splitmesh.routing.costs import NO_ANSWER
from splitmesh.routing.finding import NOTHING, SOMETHING
from splitmesh.routing.gate import Verdict, Why
from tests.support.exit_nets import FOUND, finding_detector, staged_classifier


def active(manifest: Manifest) -> ActiveModel:
    info = VersionInfo("parts", 1, 0, {}, "push", "", (), datetime(2026, 1, 1, tzinfo=UTC))
    return ActiveModel(info, manifest, cast(Any, None), None)


def exit_said(answer: int) -> Verdict:
    return Verdict(False, Why.UNSURE, 0.5, 0.9, 0.5, answer, None)


@pytest.mark.parametrize(("answer", "disagreed"), [(1, False), (0, True), (NO_ANSWER, False)])
def test_of_a_classifier_the_most_probable_class(answer: int, disagreed: bool) -> None:
    manifest = staged_classifier().work.manifest
    scores = np.log(
        np.array([[0.2, 0.7, *[0.1 / (len(manifest.labels) - 2)] * (len(manifest.labels) - 2)]], np.float32)
    )
    said = tail_said(active(manifest), {manifest.class_output: scores}, exit_said(answer))
    assert said == TailSaid(1, cast(float, pytest.approx(0.7, abs=1e-5)), disagreed)


@pytest.mark.parametrize(
    ("scores", "label", "confidence"),
    [
        ([0.1, 0.95], SOMETHING, 0.95),
        ([0.1, np.nan], SOMETHING, 1.0),
        ([0.1, 7.0], SOMETHING, 1.0),
        ([0.1, 0.02], NOTHING, 0.9),
        ([], NOTHING, 1.0),
    ],
)
def test_of_a_detector_whether_there_was_something_and_how_surely(
    scores: list[float], label: int, confidence: float
) -> None:
    detector = active(finding_detector().work.manifest)
    outputs = {FOUND: np.array([scores], np.float32)}
    for answer in (NOTHING, SOMETHING):
        said = tail_said(detector, outputs, exit_said(answer))
        assert said == TailSaid(label, cast(float, pytest.approx(confidence)), answer != label)


def test_outputs_that_name_no_class_say_nothing_and_missing_ones_are_a_fault() -> None:
    manifest = staged_classifier().work.manifest
    nan = np.full((1, len(manifest.labels)), np.nan, np.float32)
    assert tail_said(active(manifest), {manifest.class_output: nan}, exit_said(0)) is None
    for bare in (manifest, finding_detector().work.manifest):
        with pytest.raises(MeshError) as caught:
            tail_said(active(bare), {}, exit_said(0))
        assert caught.value.reason is Reason.PROTOCOL_VIOLATION
