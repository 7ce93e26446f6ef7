"""What a version brings for deciding: fetched, made part of the gate, and refused where it does not fit the version."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast

import numpy as np
import pytest

from edge.head.fitted import Fitted, fetch_fitted
from edge.head.policies import KeptPolicy, gate_of
from splitmesh.client.registry import ArtifactRef, VersionInfo
from splitmesh.errors import MeshError, Reason
from splitmesh.model.manifest import DEFERRAL, UNUSUAL
from splitmesh.routing.gate import Why
from splitmesh.routing.rule import DEFERRAL as DEFERRAL_SCORE
from tests.support.exit_nets import LABELS, finding_detector, staged_classifier
from tests.support.fitted import deferral, strange_beyond

CLASSES = len(LABELS)
ROW = np.array([[0.99, *[0.01 / (CLASSES - 1)] * (CLASSES - 1)]])
INFO = VersionInfo("parts", 3, 0, {}, "push", "", (), datetime(2026, 1, 1, tzinfo=UTC))


def test_a_detectors_gate_lets_only_nothing_pass() -> None:
    gate = gate_of(KeptPolicy(revision=1, threshold=0.5), finding_detector().work.manifest, Fitted())
    whys = [gate.verdict(np.array([one])).why for one in ([0.9, 0.1], [0.1, 0.9])]
    assert whys == [Why.SURE, Why.FINDING]


def features_width() -> int:
    manifest = staged_classifier().work.manifest
    assert manifest.split is not None
    assert manifest.exit is not None
    return next(info.shape[1] for info in manifest.split.head.outputs if info.name == manifest.exit.features)


def test_what_was_fitted_is_part_of_the_gate() -> None:
    width = features_width()
    fitted = Fitted(deferral(features=True, width=width, classes=CLASSES), strange_beyond(3.0, width=width))
    manifest = staged_classifier().work.manifest
    gate = gate_of(KeptPolicy(revision=1, threshold=0.2, score=DEFERRAL_SCORE), manifest, fitted)
    usual, strange = np.full((1, width), -0.01), np.full((1, width), 9.0)
    assert gate.verdict(ROW, features=usual).why is Why.SURE
    assert gate.verdict(ROW, features=strange).why is Why.UNUSUAL
    lenient = KeptPolicy(revision=1, threshold=0.2, escalate_unusual=False)
    assert gate_of(lenient, manifest, fitted).verdict(ROW, features=strange).why is Why.SURE


@pytest.mark.parametrize(
    ("fitted", "reason"),
    [
        (Fitted(unusual=strange_beyond(3.0, width=3)), Reason.TENSOR_SHAPE_MISMATCH),
        (Fitted(deferral=deferral(features=True, width=3, classes=CLASSES)), Reason.TENSOR_SHAPE_MISMATCH),
        (Fitted(damage="the measure of unusual samples is damaged"), Reason.MODEL_CORRUPT),
    ],
)
def test_what_does_not_fit_the_version_is_found_before_a_frame_meets_it(fitted: Fitted, reason: Reason) -> None:
    with pytest.raises(MeshError) as caught:
        gate_of(KeptPolicy(revision=1, threshold=0.5), staged_classifier().work.manifest, fitted)
    assert caught.value.reason is reason


def test_a_head_that_gives_no_features_cannot_promise_that_the_unusual_escalates() -> None:
    manifest = staged_classifier().work.manifest
    assert manifest.exit is not None
    bare = manifest.model_copy(update={"exit": manifest.exit.model_copy(update={"features": None})})
    fitted = Fitted(unusual=strange_beyond(3.0, width=features_width()))
    with pytest.raises(MeshError) as caught:
        gate_of(KeptPolicy(revision=1, threshold=0.5), bare, fitted)
    assert caught.value.reason is Reason.MODEL_INCOMPLETE
    gate_of(KeptPolicy(revision=1, threshold=0.5, escalate_unusual=False), bare, fitted)


class Cache:
    """Stands for :class:`splitmesh.client.cache.ModelCache`."""

    def __init__(self, contents: dict[str, bytes]) -> None:
        self.contents = contents
        refs = {name: ArtifactRef(name, "0" * 64, len(data)) for name, data in contents.items()}
        self.version = replace(INFO, artifacts=refs)

    async def part(self, version: VersionInfo, name: str) -> bytes:
        """As the cache's."""
        assert version is self.version
        return self.contents[name]


async def test_what_a_version_brings_is_fetched_where_it_has_it() -> None:
    manifest = staged_classifier().work.manifest
    full = Cache({DEFERRAL: deferral().to_bytes(), UNUSUAL: strange_beyond(3.0).to_bytes()})
    fitted = await fetch_fitted(cast(Any, full), full.version, manifest)
    assert (fitted.deferral is None, fitted.unusual is None, fitted.damage) == (False, False, "")
    bare = Cache({})
    assert await fetch_fitted(cast(Any, bare), bare.version, manifest) == Fitted()


async def test_a_damaged_part_is_no_reason_not_to_load_the_version_but_nothing_is_promised_of_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache = Cache({UNUSUAL: b"damaged"})
    fitted = await fetch_fitted(cast(Any, cache), cache.version, staged_classifier().work.manifest)
    assert "unusual" in fitted.damage
    assert "every sample of parts version 3 escalates" in caplog.text
