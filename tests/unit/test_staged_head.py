"""A head in pieces with real sessions: what runs, what it gives, who may answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from edge.head.staged import HeadRun, StagedHead, judged, run_head
from splitmesh.errors import MeshError, Reason
from splitmesh.model.manifest import HEAD, Manifest
from splitmesh.routing.gate import ESCALATE_ALL, Gate, Override, Why
from splitmesh.routing.rule import DEFERRAL, Judge, Rule
from splitmesh.runtime import Session, open_session
from splitmesh.tensor.spec import Array
from tests.support.exit_nets import NOISE, finding_detector, pictures_of, staged_classifier
from tests.support.fitted import deferral, strange_beyond
from tests.unit.onnx_nets import data, model, node, value


class _Counting:
    def __init__(self, session: Session) -> None:
        self._session = session
        self.runs = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        self.runs += 1
        return self._session.run(feeds)


@pytest.fixture
def pieces() -> Iterator[list[_Counting]]:
    work = staged_classifier().work
    made = [_Counting(open_session(work.artifacts[stage.artifact])) for stage in work.manifest.stages]
    yield made
    for piece in made:
        piece.close()


@pytest.fixture
def manifest() -> Manifest:
    return staged_classifier().work.manifest


def why(run: HeadRun) -> Why:
    assert run.verdict is not None
    return run.verdict.why


def picture(seed: int = 1) -> dict[str, Array]:
    return {"x": pictures_of(1, noise=NOISE, seed=seed)[0]}


def confidences(pieces: list[_Counting], manifest: Manifest, feeds: dict[str, Array]) -> list[float]:
    outputs = StagedHead(pieces).run(feeds)
    return [float(outputs[entry.output].max()) for entry in manifest.exits()]


def where(pieces: list[_Counting], manifest: Manifest, *, rising: bool) -> dict[str, Array]:
    """A picture of which the second exit is surer than the first, or less sure."""
    for seed in range(200):
        first, second = confidences(pieces, manifest, picture(seed))
        if (second > first + 0.02) if rising else (first > second + 0.02):
            return picture(seed)
    raise AssertionError("no such picture")


def test_as_a_session_it_gives_what_the_head_in_one_piece_gives(pieces: list[_Counting], manifest: Manifest) -> None:
    head = open_session(staged_classifier().work.artifacts[HEAD])
    staged = StagedHead(pieces)
    feeds = picture()
    given, expected = staged.run(feeds), head.run(feeds)
    for name, array in expected.items():
        # A cut's codes may differ by one where the runtime fuses differently.
        np.testing.assert_allclose(
            given[name].astype(float), array.astype(float), atol=1 if array.dtype == np.uint8 else 1e-5
        )
    assert staged.inputs == head.inputs
    assert {spec.name for spec in head.outputs} <= {spec.name for spec in staged.outputs}
    assert staged.providers == head.providers


def test_it_stops_at_the_first_sure_exit(pieces: list[_Counting], manifest: Manifest) -> None:
    feeds = where(pieces, manifest, rising=True)
    first, second = confidences(pieces, manifest, feeds)
    before = [piece.runs for piece in pieces]
    early = run_head(StagedHead(pieces), manifest, Gate(first - 0.01), feeds, escalate=False)
    assert (early.exit, why(early), early.complete) == (0, Why.SURE, False)
    assert [piece.runs for piece in pieces] == [before[0] + 1, before[1]]
    assert early.outputs.keys() == set(manifest.exits()[0].outputs())
    late = run_head(StagedHead(pieces), manifest, Gate(second - 0.01), feeds, escalate=False)
    assert (late.exit, why(late), late.complete) == (1, Why.SURE, True)
    assert late.exit_row is not None
    assert late.exit_row.max() == pytest.approx(second)


def test_unsure_at_every_exit_it_gives_what_crosses_and_the_deepest_exits_row(
    pieces: list[_Counting], manifest: Manifest
) -> None:
    feeds = where(pieces, manifest, rising=False)
    first, second = confidences(pieces, manifest, feeds)
    unsure = run_head(StagedHead(pieces), manifest, Gate(first + 0.01), feeds, escalate=False)
    assert (unsure.exit, why(unsure), unsure.complete) == (1, Why.UNSURE, True)
    assert unsure.exit_row is not None
    # Not the surest row: the one that the fallback stands for.
    assert unsure.exit_row.max() == pytest.approx(second)
    assert manifest.split is not None
    # What one piece hands to the next would only take memory while the tail computes.
    assert unsure.outputs.keys() == {info.name for info in manifest.split.head.outputs}


@pytest.mark.parametrize("escalate", [True, False])
def test_with_escalate_nothing_is_sure(pieces: list[_Counting], manifest: Manifest, escalate: bool) -> None:
    run = run_head(StagedHead(pieces), manifest, Gate(0.0), picture(), escalate=escalate)
    assert (why(run), run.exit, run.complete) == ((Why.ASKED, 1, True) if escalate else (Why.SURE, 0, False))


def test_a_head_in_one_piece_runs_once_and_asks_its_only_exit() -> None:
    work = finding_detector().work
    head = _Counting(open_session(work.artifacts[HEAD]))
    feeds = {"x": pictures_of(1)[0]}
    run = run_head(head, work.manifest, Gate(ESCALATE_ALL), feeds, escalate=False)
    assert (run.exit, why(run), run.complete, head.runs) == (0, Why.NO_PROMISE, True, 1)


def test_a_model_without_an_exit_is_never_sure() -> None:
    work = finding_detector().work
    bare = Manifest(task="raw", whole=work.manifest.whole)
    session = open_session(work.whole())
    run = run_head(session, bare, Gate(0.0), {"x": pictures_of(1)[0]}, escalate=False)
    assert run == HeadRun(run.outputs, None, -1, None, complete=True)


def test_a_detectors_exit_may_only_say_nothing_under_the_names_of_findings() -> None:
    work = finding_detector().work
    exit_ = work.manifest.exit
    assert exit_ is not None
    outputs = {name: np.zeros((1, 2), np.float32) for name in exit_.outputs()}
    for row, expected in [([0.95, 0.05], Why.DRIFTED), ([0.05, 0.95], Why.FINDING)]:
        gate = Gate(0.5, Judge(finding=True), overrides=[Override("", "nothing", ESCALATE_ALL)])
        given = outputs | {exit_.output: np.array([row], np.float32)}
        assert judged(work.manifest, exit_, gate, given).why is expected


def test_a_camera_of_its_own_threshold_goes_deeper_than_others(pieces: list[_Counting], manifest: Manifest) -> None:
    gate = Gate(0.0, overrides=[Override("north", "", ESCALATE_ALL)])
    runs = {
        camera: run_head(StagedHead(pieces), manifest, gate, picture(), camera=camera, escalate=False)
        for camera in ("north", "south")
    }
    assert [(run.exit, why(run)) for run in runs.values()] == [(1, Why.DRIFTED), (0, Why.SURE)]


def test_an_override_of_a_class_goes_by_its_name(pieces: list[_Counting], manifest: Manifest) -> None:
    row = StagedHead(pieces).run(picture())[manifest.exits()[0].output][0]
    named = manifest.labels[int(row.argmax())]
    for label, expected in [(named, Why.DRIFTED), ("of no class", Why.SURE)]:
        gate = Gate(0.0, overrides=[Override("", label, ESCALATE_ALL)])
        assert judged(manifest, manifest.exits()[0], gate, StagedHead(pieces).run(picture())).why is expected


def test_a_fitted_score_is_known_at_the_cut_alone(pieces: list[_Counting], manifest: Manifest) -> None:
    gate = Gate(0.0, Judge(Rule(DEFERRAL)), deferral=deferral(classes=len(manifest.labels)))
    run = run_head(StagedHead(pieces), manifest, gate, picture(), escalate=False)
    assert (run.exit, why(run)) == (1, Why.SURE)
    assert run.verdict is not None
    assert run.verdict.ease == pytest.approx(1 - run.verdict.worth)


def test_logits_are_read_at_every_exit_and_features_at_the_cut(pieces: list[_Counting], manifest: Manifest) -> None:
    assert manifest.exit is not None
    assert manifest.exit.features is not None
    given = StagedHead(pieces).run(picture())
    width = given[manifest.exit.features].shape[1]
    gate = Gate(0.0, Judge(Rule("energy")), unusual=strange_beyond(0.0, width=width))
    first = run_head(StagedHead(pieces), manifest, gate, picture(), escalate=False)
    assert (first.exit, why(first)) == (0, Why.SURE)
    assert first.verdict is not None
    assert first.verdict.unusual is None
    last = judged(manifest, manifest.exit, gate, given)
    assert (last.why, last.unusual) == (Why.UNUSUAL, True)
    assert last.ease != pytest.approx(first.verdict.ease)


def test_what_an_exit_gives_beside_its_row_does_not_cross(pieces: list[_Counting], manifest: Manifest) -> None:
    run = run_head(StagedHead(pieces), manifest, Gate(ESCALATE_ALL), picture(), escalate=False)
    assert manifest.split is not None
    wire = {info.name for info in manifest.split.wire}
    beside = {name for entry in manifest.exits() for name in entry.outputs()}
    assert run.outputs.keys() == wire | beside
    assert not wire & beside


def test_an_input_that_only_a_later_piece_takes_is_an_input_of_the_head() -> None:
    shape: list[int | str | None] = ["N", 2]
    first = data(model([node("Relu", "a", "h")], [value("a", shape)], [value("h", shape)]))
    second = data(model([node("Add", "h b", "y")], [value("h", shape), value("b", shape)], [value("y", shape)]))
    staged = StagedHead([open_session(first), open_session(second)])
    assert [spec.name for spec in staged.inputs] == ["a", "b"]
    given = staged.run({"a": np.array([[-1, 2]], np.float32), "b": np.array([[1, 1]], np.float32)})
    np.testing.assert_array_equal(given["y"], [[1, 3]])


def test_closing_closes_every_piece(pieces: list[_Counting]) -> None:
    StagedHead(pieces).close()
    for piece in pieces:
        with pytest.raises(MeshError) as caught:
            piece.run(picture())
        assert caught.value.reason is Reason.NOT_READY
