"""What commands print for programs to read."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from splitmesh.cli.output import show_json, show_line
from splitmesh.errors import MeshError, Reason


@dataclass(frozen=True)
class Entry:
    limit: float
    shares: tuple[float, ...]


def strict(text: str) -> object:
    """As a reader that knows nothing but JSON."""

    def refuse(name: str) -> object:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_numbers_that_are_not_finite_are_null_wherever_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"entries": [Entry(math.inf, (1.0, math.nan))], "row": np.array([-math.inf, 2.0]), "alone": math.inf}
    wanted = {"entries": [{"limit": None, "shares": [1.0, None]}], "row": [None, 2.0], "alone": None}
    for show in (show_json, show_line):
        show(value)
        assert strict(capsys.readouterr().out) == wanted


def test_values_that_json_does_not_know_are_written_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    show_json([MeshError(Reason.NOT_READY, "soon"), datetime(2026, 1, 2, tzinfo=UTC), Path("a/b"), True, 3, None])
    reason, *others = json.loads(capsys.readouterr().out)
    assert reason == {"reason": "NOT_READY", "message": "soon"}
    assert others == ["2026-01-02T00:00:00+00:00", "a/b", True, 3, None]
    with pytest.raises(TypeError, match="object has no JSON form"):
        show_json(object())
