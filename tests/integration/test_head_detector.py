"""A detector with an exit that can only say "nothing": who answers what, and what is counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest

from splitmesh.client import Answer, AnsweredBy, Mesh
from splitmesh.client.routing import Goals, Outcomes
from splitmesh.errors import Reason
from splitmesh.model.manifest import HEAD, WHOLE
from splitmesh.routing.finding import FINDINGS, NOTHING, SOMETHING, something_found
from splitmesh.routing.gate import ESCALATE_ALL
from splitmesh.runtime import open_session
from splitmesh.tensor.spec import Array
from tests.support.exit_nets import FOUND, FOUND_SCORE, finding_detector, pictures_of
from tests.support.worlds import WAIT_S, World, world

NAME = "detector"


class Frames:
    """New pictures, what the exit says about each and how surely, and what the whole model finds."""

    def __init__(self) -> None:
        self.pictures = np.concatenate([pictures_of(150, noise=0.25, seed=5)[0], _cells(150)])
        finished = finding_detector()
        exit_ = finished.work.manifest.exit
        assert exit_ is not None
        self.rows = open_session(finished.work.artifacts[HEAD]).run({"x": self.pictures})[exit_.output]
        whole = open_session(finished.work.artifacts[WHOLE])
        self.whole = [whole.run({"x": picture[None]}) for picture in self.pictures]
        self.something = np.array([something_found(given[FOUND], FOUND_SCORE) for given in self.whole])
        self.says = self.rows.argmax(axis=1)
        self.sure = self.rows.max(axis=1)


def _cells(n: int) -> Array:
    """Some cells of each picture are bright, or nearly bright enough to be something."""
    rng = np.random.default_rng(3)
    pictures = rng.normal(0, 0.05, (n, 1, 16, 16))
    for number, picture in enumerate(pictures[:, 0]):
        for cell in rng.permutation(16)[: number % 8]:
            row, column = 4 * (cell // 4), 4 * (cell % 4)
            picture[row : row + 4, column : column + 4] += 0.5 if number % 2 else 1.0
    return pictures.astype(np.float32)


@pytest.fixture(scope="module")
def frames() -> Frames:
    return Frames()


@pytest.fixture
async def edge(tmp_path: Path, registered: Path) -> AsyncIterator[World]:
    async with world(tmp_path, registered) as made:
        await made.registry.create_version(NAME, finding_detector().artifacts(), created_by="compressor")
        await made.registry.set_alias(NAME, "production", 1)
        yield made


@pytest.fixture
async def gateway(edge: World) -> Mesh:
    await edge.start("tail")
    await edge.start("head", models=NAME)
    return await edge.ready_mesh()


async def threshold_of(edge: World) -> float:
    async with asyncio.timeout(WAIT_S), aclosing(edge.routing.watch_policy(NAME, 1, "test")) as policies:
        return (await anext(policies)).threshold


async def until(gateway: Mesh, picture: Array, who: AnsweredBy) -> Answer:
    async with asyncio.timeout(WAIT_S):
        while True:
            answer = await gateway.infer(picture)
            if answer.answered_by is who:
                return answer


async def test_only_a_sure_nothing_is_answered_at_the_edge(edge: World, gateway: Mesh, frames: Frames) -> None:
    threshold = await threshold_of(edge)
    assert threshold < 1
    nothing = np.flatnonzero((frames.says == NOTHING) & (frames.sure > threshold + 0.005))[:5]
    unsure = np.flatnonzero((frames.says == NOTHING) & (frames.sure < threshold - 0.005))[:5]
    something = np.flatnonzero((frames.says == SOMETHING) & (frames.sure > threshold + 0.005))[:5]
    assert len(nothing) == len(something) == 5
    assert len(unsure)
    await until(gateway, frames.pictures[nothing[:1]], AnsweredBy.EDGE_EXIT)
    for index in nothing:
        answer = await gateway.infer(frames.pictures[[index]])
        assert (answer.answered_by, answer.exit, answer.uplink_bytes) == (AnsweredBy.EDGE_EXIT, 0, 0)
        assert [label.name for label in answer.labels] == list(FINDINGS)
        assert answer.label.score == pytest.approx(float(frames.sure[index]), abs=1e-5)
        assert not answer.outputs
    for index in (*unsure, *something):
        answer = await gateway.infer(frames.pictures[[index]])
        assert (answer.answered_by, answer.exit) == (AnsweredBy.CLOUD_TAIL, None)
        assert not answer.labels
        for name, expected in frames.whole[index].items():
            np.testing.assert_allclose(answer.outputs[name].astype(float), expected.astype(float), atol=1e-5)


async def test_any_number_of_boxes_comes_back_none_included(edge: World, gateway: Mesh, frames: Frames) -> None:
    await edge.routing.set_goals(NAME, Goals(0.001))
    assert await threshold_of(edge) == ESCALATE_ALL
    counts = np.array([len(given["chosen"]) for given in frames.whole])
    kinds = np.unique(counts)
    assert kinds[0] == 0
    assert len(kinds) > 3
    # All at once: a tail must not take the boxes of one frame for another's.
    chosen = [int(np.flatnonzero(counts == kind)[0]) for kind in kinds]
    answers = await asyncio.gather(
        *(until(gateway, frames.pictures[[index]], AnsweredBy.CLOUD_TAIL) for index in chosen)
    )
    for index, answer in zip(chosen, answers, strict=True):
        assert answer.outputs["chosen"].shape == frames.whole[index]["chosen"].shape
        np.testing.assert_array_equal(answer.outputs["chosen"], frames.whole[index]["chosen"])


async def test_too_few_calibration_samples_let_nothing_be_answered_at_the_edge(edge: World, frames: Frames) -> None:
    await edge.routing.set_goals(NAME, Goals(0.001))
    await edge.start("tail")
    await edge.start("head", models=NAME)
    gateway = await edge.ready_mesh()
    for index in np.argsort(frames.rows[:, NOTHING])[::-1][:10]:
        assert (await gateway.infer(frames.pictures[[index]])).answered_by is AnsweredBy.CLOUD_TAIL


async def test_with_the_tail_away_the_exit_says_what_it_takes_it_for(edge: World, frames: Frames) -> None:
    await edge.start("head", models=NAME, switch_wait_s=0.1)
    gateway = await edge.ready_mesh()
    for kind in (NOTHING, SOMETHING):
        index = int(np.argmin(np.where(frames.says == kind, frames.sure, 2)))
        answer = await gateway.infer(frames.pictures[[index]])
        assert (answer.answered_by, answer.exit) == (AnsweredBy.EDGE_FALLBACK, 0)
        assert answer.fallback_reason == Reason.SERVICE_UNAVAILABLE
        assert answer.label.name == FINDINGS[kind]
        assert not answer.outputs


async def test_an_exit_that_says_something_where_the_tail_finds_nothing_disagreed(
    edge: World, gateway: Mesh, frames: Frames
) -> None:
    wrong = np.flatnonzero((frames.says == SOMETHING) & ~frames.something)[:3]
    right = np.flatnonzero((frames.says == SOMETHING) & frames.something)[:4]
    assert len(wrong)
    for index in (*wrong, *right):
        assert (await gateway.infer(frames.pictures[[index]])).answered_by is AnsweredBy.CLOUD_TAIL
    sent = Outcomes()
    async with asyncio.timeout(WAIT_S):
        while sent.cloud_tail < len(wrong) + len(right):
            sent = next((entry.outcomes for entry in await edge.routing.get_outcomes(NAME)), sent)
    assert (sent.cloud_tail, sent.tail_disagreed) == (len(wrong) + len(right), len(wrong))
