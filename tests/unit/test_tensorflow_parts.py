"""What tf2onnx logs of a model that it cannot translate, as parts of a report; the words are those of tf2onnx 1.17."""

from __future__ import annotations

import logging
from collections import Counter

import pytest

from splitmesh.convert.tensorflow_parts import HINT, HINTS, reaching_out, unsupported_nodes
from splitmesh.model.unsupported import Unsupported


def heard(*records: tuple[object, ...]) -> dict[str, Unsupported]:
    parts: list[Unsupported] = []
    log = logging.getLogger("tf2onnx.tfonnx")
    with unsupported_nodes(parts):
        for record in records:
            log.error(*record)
    return {one.name: one for one in parts}


def test_operators_are_told_with_their_nodes_and_counts() -> None:
    parts = heard(
        ("Tensorflow op [%s: %s] is not supported", "model/words/StringSplit", "StringSplit"),
        ("Tensorflow op [%s: %s] is not supported", "model/more/StringSplit", "StringSplit"),
        ("Tensorflow op [%s: %s] is not supported", "model/Betainc", "Betainc"),
        ("Unsupported ops: %s", Counter({"StringSplit": 2, "Betainc": 1})),
    )
    assert {name: (one.count, one.where) for name, one in parts.items()} == {
        "StringSplit": (2, ("model/words/StringSplit", "model/more/StringSplit")),
        "Betainc": (1, ("model/Betainc",)),
    }
    assert (parts["StringSplit"].hint, parts["Betainc"].hint) == (HINTS["String"], HINT)


def test_tflite_tells_counts_only() -> None:
    parts = heard(("Unsupported ops: %s", Counter({"TFL_CUSTOM": 3})))
    assert (parts["TFL_CUSTOM"].count, parts["TFL_CUSTOM"].where) == (3, ())


def test_a_translation_that_fails_is_told_by_its_operator() -> None:
    summary = "OP=ResizeArea\nName=model/resize\nInputs:"
    parts = heard(("Failed to convert node %r (fct=%r)\n%r", "model/resize", print, summary))
    assert parts["ResizeArea"].where == ("model/resize",)


def _fails() -> None:
    logging.getLogger("tf2onnx.tfonnx").error("Tensorflow op [%s: %s] is not supported", "a", "Betainc")
    raise ValueError("stop")


def test_what_is_said_outside_of_the_block_is_not_heard_and_an_error_does_not_hide_what_was() -> None:
    parts: list[Unsupported] = []
    with pytest.raises(ValueError, match="stop"), unsupported_nodes(parts):
        _fails()
    logging.getLogger("tf2onnx.tfonnx").error("Tensorflow op [%s: %s] is not supported", "b", "Later")
    assert [one.name for one in parts] == ["Betainc"]


def test_operators_that_reach_out_are_told_with_what_they_do() -> None:
    part = reaching_out("WriteFile", ["a", "b"])
    assert (part.count, part.where) == (2, ("a", "b"))
    assert "touches files" in part.hint
