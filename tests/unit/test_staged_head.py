"""A head in pieces with real sessions: what runs, what it gives, who may answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from edge.head.staged import HeadRun, StagedHead, may_answer, run_head
from splitmesh.errors import MeshError, Reason
from splitmesh.model.gate import ESCALATE_ALL, Gate
from splitmesh.model.manifest import HEAD, ExitInfo, Finding, Manifest
from splitmesh.runtime import Session, open_session
from splitmesh.tensor.spec import Array
from tests.support.exit_nets import NOISE, finding_detector, pictures_of, staged_classifier
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
    assert (early.exit, early.sure, early.complete) == (0, True, False)
    assert [piece.runs for piece in pieces] == [before[0] + 1, before[1]]
    assert early.outputs.keys() == {manifest.exits()[0].output}
    late = run_head(StagedHead(pieces), manifest, Gate(second - 0.01), feeds, escalate=False)
    assert (late.exit, late.sure, late.complete) == (1, True, True)
    assert late.exit_row is not None
    assert late.exit_row.max() == pytest.approx(second)


def test_unsure_at_every_exit_it_gives_what_crosses_and_the_deepest_exits_row(
    pieces: list[_Counting], manifest: Manifest
) -> None:
    feeds = where(pieces, manifest, rising=False)
    first, second = confidences(pieces, manifest, feeds)
    unsure = run_head(StagedHead(pieces), manifest, Gate(first + 0.01), feeds, escalate=False)
    assert (unsure.exit, unsure.sure, unsure.complete) == (1, False, True)
    assert unsure.exit_row is not None
    # Not the surest row: the one that the fallback stands for.
    assert unsure.exit_row.max() == pytest.approx(second)
    assert manifest.split is not None
    # What one piece hands to the next would only take memory while the tail computes.
    assert unsure.outputs.keys() == {info.name for info in manifest.split.head.outputs}


@pytest.mark.parametrize("escalate", [True, False])
def test_with_escalate_nothing_is_sure(pieces: list[_Counting], manifest: Manifest, escalate: bool) -> None:
    run = run_head(StagedHead(pieces), manifest, Gate(0.0), picture(), escalate=escalate)
    assert (run.sure, run.exit, run.complete) == ((False, 1, True) if escalate else (True, 0, False))


def test_a_head_in_one_piece_runs_once_and_asks_its_only_exit() -> None:
    work = finding_detector().work
    head = _Counting(open_session(work.artifacts[HEAD]))
    feeds = {"x": pictures_of(1)[0]}
    run = run_head(head, work.manifest, Gate(ESCALATE_ALL), feeds, escalate=False)
    assert (run.exit, run.sure, run.complete, head.runs) == (0, False, True, 1)


def test_a_model_without_an_exit_is_never_sure() -> None:
    work = finding_detector().work
    bare = Manifest(task="raw", whole=work.manifest.whole)
    session = open_session(work.whole())
    run = run_head(session, bare, Gate(0.0), {"x": pictures_of(1)[0]}, escalate=False)
    assert run == HeadRun(run.outputs, None, -1, sure=False, complete=True)


@pytest.mark.parametrize(
    ("row", "sure", "finds"),
    [
        ([0.95, 0.05], True, True),
        ([0.05, 0.95], True, False),
        ([0.5, 0.5], False, False),
        ([np.nan, np.nan], False, False),
        ([0.95, 0.95], False, False),
    ],
)
def test_a_detectors_exit_may_only_say_nothing(row: list[float], sure: bool, finds: bool) -> None:
    exit_ = ExitInfo(output="e", temperature=1, fit_samples=1, holdout_samples=1, holdout_agreement=1)
    finding = exit_.model_copy(update={"finding": Finding(output="scores", min_score=0.5)})
    array = np.array([row], np.float32)
    assert may_answer(exit_, Gate(0.9), array) is sure
    assert may_answer(finding, Gate(0.9), array) is finds


def test_a_row_of_other_than_two_says_nothing_about_a_finding() -> None:
    exit_ = ExitInfo(output="e", temperature=1, fit_samples=1, holdout_samples=1, holdout_agreement=1)
    finding = exit_.model_copy(update={"finding": Finding(output="scores", min_score=0.5)})
    assert not may_answer(finding, Gate(0.5), np.array([[0.98, 0.01, 0.01]], np.float32))


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
