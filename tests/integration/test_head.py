"""The head in this process with its control plane and a tail: who answers what, and what becomes of bad frames."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from splitmesh.client import AnsweredBy
from tests.support.models import (
    EASY,
    EASY_LABEL,
    HARD,
    HARD_EXIT_LABEL,
    HARD_LABEL,
    expected_scores,
    picture,
)
from tests.support.worlds import MODEL, NO_EXIT, WHOLE_ONLY, World, answered_by, world


@pytest.fixture
async def edge(tmp_path: Path, registered: Path) -> AsyncIterator[World]:
    async with world(tmp_path, registered) as made:
        yield made


async def test_an_easy_picture_is_answered_by_the_exit(edge: World) -> None:
    await edge.start("tail")
    await edge.start("head")
    mesh = await edge.ready_mesh()
    answer = await answered_by(mesh, EASY, AnsweredBy.EDGE_EXIT)
    assert answer.label.name == EASY_LABEL
    assert answer.uplink_bytes == 0


async def test_a_hard_picture_is_answered_by_the_tail_as_the_whole_model_would(edge: World) -> None:
    await edge.start("tail")
    await edge.start("head")
    mesh = await edge.ready_mesh()
    answer = await answered_by(mesh, HARD, AnsweredBy.CLOUD_TAIL)
    assert answer.label.name == HARD_LABEL
    assert [label.score for label in sorted(answer.labels, key=lambda one: one.index)] == pytest.approx(
        expected_scores(picture(HARD)), abs=1e-5
    )
    assert answer.uplink_bytes > 0
    assert answer.exit_confidence == pytest.approx(0.73, abs=0.01)
