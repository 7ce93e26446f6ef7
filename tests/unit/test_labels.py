"""An answer's classes as bytes: the same as label messages made one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.head.labels import MOST_LABELS, add_labels, most_probable
from splitmesh.api.inference.v1 import inference_pb2 as pb

ROWS = st.lists(st.integers(0, 5).map(lambda tenths: tenths / 10), min_size=1, max_size=40)
"""With many equal ones."""


@given(ROWS, st.integers(1, 50))
def test_the_most_probable_are_those_of_a_stable_sort(row: list[float], most: int) -> None:
    scores = np.array(row)
    assert most_probable(scores, most).tolist() == np.argsort(-scores, kind="stable")[:most].tolist()


@given(ROWS, st.integers(0, 50), st.lists(st.text(max_size=9), max_size=40))
def test_the_labels_are_those_that_messages_would_hold(row: list[float], most: int, names: list[str]) -> None:
    scores = np.array(row)
    response = pb.InferResponse(frame_id=7, trace_id="t")
    add_labels(response, scores, tuple(names), most)
    expected = [
        pb.Label(index=index, name=names[index] if index < len(names) else "", score=scores[index])
        for index in most_probable(scores, most or MOST_LABELS).tolist()
    ]
    assert list(response.labels) == expected
    assert (response.frame_id, response.trace_id) == (7, "t")


@pytest.mark.parametrize("asked", [0, MOST_LABELS, MOST_LABELS + 1])
def test_an_answer_never_holds_more_than_a_thousand_labels(asked: int) -> None:
    response = pb.InferResponse()
    add_labels(response, np.linspace(0, 1, MOST_LABELS + 5), (), asked)
    assert len(response.labels) == MOST_LABELS
    assert response.labels[0].index == MOST_LABELS + 4


@given(ROWS, st.integers(0, 50), st.data())
def test_the_class_that_is_the_answer_stands_first_and_the_others_keep_their_order(
    row: list[float], most: int, data: st.DataObject
) -> None:
    scores, first = np.array(row), data.draw(st.integers(0, len(row) - 1))
    response = pb.InferResponse()
    add_labels(response, scores, (), most, first)
    others = [index for index in most_probable(scores, len(row)).tolist() if index != first]
    assert [label.index for label in response.labels] == [first, *others][: most or MOST_LABELS]
    assert [label.score for label in response.labels] == [np.float32(scores[one.index]) for one in response.labels]
