"""What a class output holds is seen once, kept, and an exit's classes are given in that form."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from edge.head.active import ActiveModel
from edge.head.scores import ScoreForms, as_output
from splitmesh.client.registry import VersionInfo
from splitmesh.model.classes import ScoreForm, as_probabilities, score_form
from splitmesh.model.segments import TensorInfo

ROW = np.array([0.7, 0.3, 0.0])


def way(version: int = 1) -> ActiveModel:
    info = VersionInfo("m", version, 0, {}, "push", "", (), datetime.now(UTC))
    return ActiveModel(info, cast(Any, None), cast(Any, None), None)


@pytest.mark.parametrize(
    ("output", "form"),
    [
        (np.array([[2.0, -1.0]], np.float32), ScoreForm.LOGITS),
        (np.array([[0.75, 0.25]], np.float16), ScoreForm.PROBABILITIES),
        (np.array([[[0.5, 0.5]]], np.float32), ScoreForm.PROBABILITIES),
        (np.array([[0.75, 0.75]], np.float32), ScoreForm.LOGITS),
        (np.array([[3, 1]], np.int64), None),
    ],
)
def test_a_class_output_holds_logits_or_probabilities(output: np.ndarray, form: ScoreForm | None) -> None:
    assert score_form(output) is form


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_an_exits_classes_as_logits_have_its_probabilities(dtype: str) -> None:
    output = as_output(ROW, ScoreForm.LOGITS, TensorInfo(name="logits", dtype=dtype, shape=(-1, 3)))
    assert (output.dtype.name, output.shape) == (dtype, (1, 3))
    assert np.isfinite(output).all()
    assert as_probabilities(output)[0] == pytest.approx(ROW, abs=1e-3)


def test_an_exits_classes_as_probabilities_are_what_they_are_in_the_outputs_shape() -> None:
    output = as_output(ROW, ScoreForm.PROBABILITIES, TensorInfo(name="p", dtype="float32", shape=(-1, 1, -1)))
    assert output.shape == (1, 1, 3)
    assert output[0, 0] == pytest.approx(ROW)


async def test_what_one_way_saw_is_told_to_all_and_survives_a_restart(tmp_path: Path) -> None:
    forms, ways = ScoreForms(tmp_path / "scores"), [way(), way(2)]
    await forms.share(ways)
    assert [one.scores for one in ways] == [None, None]
    ways[1].scores = ScoreForm.PROBABILITIES
    await forms.share(ways)
    assert [one.scores for one in ways] == [ScoreForm.PROBABILITIES] * 2
    again = [way()]
    await ScoreForms(tmp_path / "scores").share(again)
    assert again[0].scores is ScoreForm.PROBABILITIES


async def test_a_damaged_note_is_like_none_and_another_version_has_its_own(tmp_path: Path) -> None:
    (tmp_path / "m-1").write_text("nonsense")
    damaged, other = way(1), way(2)
    forms = ScoreForms(tmp_path)
    await forms.share([damaged])
    damaged.scores = ScoreForm.LOGITS
    await forms.share([damaged])
    await forms.share([other])
    assert (damaged.scores, other.scores) == (ScoreForm.LOGITS, None)
    assert (tmp_path / "m-1").read_text() == "logits"


async def test_a_disk_that_cannot_be_written_costs_only_the_note(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    one = way()
    one.scores = ScoreForm.LOGITS
    await ScoreForms(blocked / "scores").share([one])
    assert one.scores is ScoreForm.LOGITS
