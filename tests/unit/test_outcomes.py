"""The artefact that says what exits did on samples that they were not fitted to."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load, save

from splitmesh.errors import MeshError, Reason
from splitmesh.model import outcomes as module
from splitmesh.model.outcomes import CalibrationOutcomes, Part
from splitmesh.routing.rule import DEFERRAL, EXPECTED_COST, Rule
from tests.support.outcomes import outcomes_of

ROWS = np.array([[[0.7, 0.3], [0.9, 0.1]], [[0.4, 0.6], [0.2, 0.8]], [[0.5, 0.5], [0.6, 0.4]]], np.float32)


def _outcomes(**changes: object) -> CalibrationOutcomes:
    given: dict[str, object] = {
        "probabilities": ROWS,
        "whole": np.array([0, 1, 1]),
        "part": np.array([1, 2, 2]),
        "logits": np.log(ROWS),
        "worth": np.array([0.1, 0.2, 0.75]),
        "strange": np.array([False, True, False]),
        "labels": np.array([0, -1, 1]),
        "groups": np.array([4, 4, 9]),
        "names": ("ok", "ng"),
        "seed": 7,
    }
    return CalibrationOutcomes(**(given | changes))  # type: ignore[arg-type]


def test_what_is_written_is_read_back() -> None:
    written = _outcomes()
    read = CalibrationOutcomes.from_bytes(written.to_bytes())
    for name in ("probabilities", "whole", "part", "logits", "worth", "strange", "labels", "groups"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
    assert (read.n, read.exits, read.seed, read.names, read.finding) == (3, 2, 7, ("ok", "ng"), False)
    assert read.to_bytes() == written.to_bytes()


def test_what_was_not_measured_is_not_there_after_reading_either() -> None:
    read = CalibrationOutcomes.from_bytes(_outcomes(logits=None, worth=None, strange=None, labels=None).to_bytes())
    assert (read.logits, read.worth, read.strange, read.labels) == (None, None, None, None)


def test_no_sample_at_all_is_a_file_too() -> None:
    assert CalibrationOutcomes.from_bytes(outcomes_of([], []).to_bytes()).n == 0


def test_the_hold_out_alone_gives_the_columns_of_a_threshold() -> None:
    eases, agrees = _outcomes().columns()
    np.testing.assert_allclose(eases, [[0.6, 0.8], [0.5, 0.6]], rtol=1e-6)
    assert agrees.tolist() == [[True, True], [False, False]]


def test_a_row_that_is_no_distribution_has_no_ease() -> None:
    eases, _ = outcomes_of([[0.5], [np.nan]], [[True], [True]]).columns()
    assert np.isnan(eases[:, 0]).tolist() == [False, True]


def test_a_row_of_no_numbers_can_be_written_and_is_never_answered() -> None:
    rows, logits = ROWS.copy(), np.log(ROWS)
    rows[2, 1, 0], logits[2, 1] = np.nan, np.inf
    read = CalibrationOutcomes.from_bytes(_outcomes(probabilities=rows, logits=logits).to_bytes())
    for score in ("max_probability", "energy"):
        eases, _ = read.eases(Rule(score))
        assert np.isnan(eases).tolist() == [[False, False], [False, False], [False, True]]


def test_only_the_exit_at_the_cut_knows_worths_and_what_is_strange() -> None:
    eases, _ = _outcomes().eases(Rule(DEFERRAL))
    assert np.isnan(eases[:, 0]).all()
    np.testing.assert_allclose(eases[:, 1], [0.9, 0.8, 0.25], rtol=1e-6)
    eases, _ = _outcomes().eases(escalate_unusual=True)
    assert np.isnan(eases).tolist() == [[False, False], [False, True], [False, False]]


def test_with_costs_the_answer_is_the_cheapest_class() -> None:
    _, answers = _outcomes().of(Part.VALIDATION).eases(Rule(EXPECTED_COST, costs=(0, 1, 20, 0)))
    assert answers.tolist() == [[1, 1]]


def test_a_detectors_exit_answers_nothing_but_nothing() -> None:
    eases, _ = _outcomes(finding=True, names=()).eases()
    assert np.isnan(eases).tolist() == [[False, False], [True, True], [False, False]]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"probabilities": ROWS[:, 0]}, "probabilities"),
        ({"whole": np.array([0, 1])}, "whole"),
        ({"whole": np.array([0, 1, 2])}, "whole"),
        ({"part": np.array([0, 1, 2])}, "part"),
        ({"logits": ROWS[:, :1]}, "logits"),
        ({"worth": np.zeros(2)}, "worth"),
        ({"names": ("ok",)}, "names"),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(change: dict[str, object], field: str) -> None:
    with pytest.raises(MeshError) as caught:
        _outcomes(**change)
    assert caught.value.fields[0][0] == field


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"version": np.array([1])}, "version is 1"),
        ({"whole": np.array([0, 1, 5])}, "whole"),
        ({"worth": np.array([0.1, np.nan, 0.2], np.float32)}, "worth"),
        ({"names": np.frombuffer(b"{}", np.uint8)}, "names"),
        ({"names": np.frombuffer(b"[1, 2]", np.uint8)}, "names"),
        ({"names": np.frombuffer(b"\xff", np.uint8)}, "names"),
        ({"more": np.array([1])}, "more"),
        ({"part": np.array([1, 2], np.uint8)}, "part"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(change: dict[str, np.ndarray], what: str) -> None:
    arrays = load(_outcomes().to_bytes()) | change
    with pytest.raises(MeshError, match=what) as caught:
        CalibrationOutcomes.from_bytes(save(arrays))
    assert caught.value.reason is Reason.MODEL_CORRUPT


@pytest.mark.parametrize("data", [b"", b"{", b'{"schema_version": 1}', b"\xff\xfe"])
def test_what_is_no_such_file_is_refused(data: bytes) -> None:
    with pytest.raises(MeshError) as caught:
        CalibrationOutcomes.from_bytes(data)
    assert caught.value.reason is Reason.MODEL_CORRUPT


def test_a_file_above_the_limit_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 10)
    with pytest.raises(MeshError, match="at most 10"):
        CalibrationOutcomes.from_bytes(_outcomes().to_bytes())
