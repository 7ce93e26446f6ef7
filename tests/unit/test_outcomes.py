"""The artefact that says how an exit did on its hold-out."""

from __future__ import annotations

import json

import numpy as np
import pytest

from splitmesh.errors import MeshError, Reason
from splitmesh.model import outcomes as module
from splitmesh.model.outcomes import CalibrationOutcomes


def test_what_is_written_is_read_back() -> None:
    written = CalibrationOutcomes.of(np.array([0.9, 0.25]), np.array([True, False]), seed=7)
    read = CalibrationOutcomes.from_json(written.to_json())
    assert read == written
    assert (read.n, read.seed, read.agrees) == (2, 7, (True, False))
    assert read.scores().tolist() == [0.9, 0.25]


def test_a_sample_without_a_confidence_is_null_in_the_file_and_nan_in_the_array() -> None:
    written = CalibrationOutcomes.of([0.5, float("nan")], [True, True], seed=0)
    assert json.loads(written.to_json())["confidences"] == [0.5, None]
    assert np.isnan(CalibrationOutcomes.from_json(written.to_json()).scores()).tolist() == [False, True]


def test_the_file_has_the_documented_fields() -> None:
    content = json.loads(CalibrationOutcomes.of([1.0], [True], seed=3).to_json())
    assert content == {"schema_version": 1, "n": 1, "confidences": [1.0], "agrees": [True], "seed": 3}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"n": 3}, "n is 3"),
        ({"agrees": [True]}, "1 agreements"),
        ({"confidences": [0.5, 1.5]}, "confidences.1"),
        ({"confidences": [0.5, -0.1]}, "confidences.1"),
        ({"schema_version": 2}, "schema_version"),
        ({"labels": ["ok"]}, "labels"),
        ({"seed": None}, "seed"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(change: dict[str, object], what: str) -> None:
    content = {"schema_version": 1, "n": 2, "confidences": [0.5, 0.5], "agrees": [True, True], "seed": 0}
    with pytest.raises(MeshError, match=what) as caught:
        CalibrationOutcomes.from_json(json.dumps(content | change).encode())
    assert caught.value.reason is Reason.MODEL_CORRUPT


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b'{"n": NaN}'])
def test_what_is_no_such_file_is_refused(data: bytes) -> None:
    with pytest.raises(MeshError) as caught:
        CalibrationOutcomes.from_json(data)
    assert caught.value.reason is Reason.MODEL_CORRUPT


def test_a_file_above_the_limit_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_OUTCOMES_BYTES", 10)
    with pytest.raises(MeshError, match="at most 10"):
        CalibrationOutcomes.from_json(CalibrationOutcomes.of([1.0], [True], seed=0).to_json())


def test_several_exits_are_columns_from_the_input_on() -> None:
    scores = np.array([[0.5, 0.9], [np.nan, 0.25], [0.75, 1.0]])
    agrees = np.array([[True, False], [True, True], [False, True]])
    read = CalibrationOutcomes.from_json(CalibrationOutcomes.of(scores, agrees, seed=1).to_json())
    np.testing.assert_array_equal(read.columns()[0], scores)
    np.testing.assert_array_equal(read.columns()[1], agrees)
    assert read.confidences == (0.9, 0.25, 1.0)
    assert read.earlier[0].confidences == (0.5, None, 0.75)


def test_a_file_of_one_exit_says_nothing_of_others_and_one_written_before_there_were_any_is_read() -> None:
    assert "earlier" not in json.loads(CalibrationOutcomes.of([1.0], [True], seed=3).to_json())
    old = b'{"schema_version":1,"n":2,"confidences":[0.5,null],"agrees":[true,false],"seed":0}'
    scores, agrees = CalibrationOutcomes.from_json(old).columns()
    assert scores.shape == agrees.shape == (2, 1)


def test_an_exit_of_another_length_is_refused() -> None:
    content = json.loads(CalibrationOutcomes.of([[1.0, 0.5]], [[True, True]], seed=3).to_json())
    content["earlier"][0]["confidences"].append(0.5)
    with pytest.raises(MeshError) as caught:
        CalibrationOutcomes.from_json(json.dumps(content).encode())
    assert caught.value.reason is Reason.MODEL_CORRUPT
