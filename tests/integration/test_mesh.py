"""The whole road on all six services at once: from an ONNX file to answered frames. One test body, two worlds (``--mesh``)."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from splitmesh.client import Answer, AnsweredBy
from splitmesh.client.compression import CompressionClient
from splitmesh.client.partition import PartitionClient
from splitmesh.client.routing import Goals, RoutingClient
from splitmesh.model.classes import as_probabilities
from splitmesh.runtime import open_session
from splitmesh.testing.links import PROFILES
from splitmesh.testing.mesh import Launcher, LocalMesh, ProcessLauncher
from tests.integration.small_model import CUT, push_small, small_manifest, small_model, small_pictures
from tests.support.streaming import streamed
from tests.support.worlds import ROOT, InProcessLauncher, serving

MODEL = "stripes"
FRAMES = 60


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0]).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
async def mesh(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LocalMesh]:
    inprocess = request.config.getoption("--mesh") == "inprocess"
    launcher: Launcher = InProcessLauncher() if inprocess else ProcessLauncher(ROOT, tmp_path)
    settings = {"head": {"models": MODEL, "report_interval_s": "0.1"}}
    async with LocalMesh(launcher, tmp_path, link=PROFILES["private-5g"], settings=settings) as started:
        yield started


@pytest.mark.timeout(180)
async def test_a_file_becomes_a_split_model_that_answers_frames_at_the_edge_and_in_the_cloud(mesh: LocalMesh) -> None:
    registry, router = mesh.registry(), RoutingClient(mesh.channels)
    pushed = await push_small(registry, MODEL, samples=600)
    plan = await PartitionClient(mesh.channels).plan(
        MODEL, pushed.version, uplink_mbps=100.0, rtt_ms=10.0, picture_stays_on_site=True, budget_s=10.0
    )
    assert {"EDGE_ONLY", "SPLIT", "CASCADE"} <= {option.kind for option in plan.options if option.feasible}
    split = await PartitionClient(mesh.channels).split(MODEL, pushed.version, [CUT])
    version, report = await CompressionClient(mesh.channels).compress(MODEL, split.version, ["int8-cut", "exits"])
    sizes = [point.wire_bytes for point in report.points if point.kind == "cut"]
    assert min(sizes) < max(sizes) / 2
    await router.set_goals(MODEL, Goals(0.05))
    await registry.set_alias(MODEL, "production", version)
    await serving(mesh.address("head"))

    pixels = small_pictures(FRAMES, seed=9)
    whole = open_session(small_model())
    preprocess = small_manifest().preprocess
    assert preprocess is not None
    expected = as_probabilities(whole.run({"x": preprocess.normalise(pixels)})["logits"]).argmax(axis=1)
    answers: dict[int, Answer] = {}
    async with mesh.gateway(deadline_ms=5000) as gateway:
        for outcome in await streamed(gateway, [png(picture) for picture in pixels], "line", window=8):
            assert isinstance(outcome, Answer)
            answers[outcome.frame_id] = outcome
    assert sorted(answers) == list(range(FRAMES))
    who = Counter(answer.answered_by for answer in answers.values())
    assert set(who) == {AnsweredBy.EDGE_EXIT, AnsweredBy.CLOUD_TAIL}
    for number, answer in answers.items():
        if answer.answered_by is AnsweredBy.CLOUD_TAIL:
            assert answer.uplink_bytes > 0
            assert answer.label.index == expected[number]
        assert answer.version == version

    await mesh.stop("head")  # its last report leaves with it
    counted = [node.outcomes for node in await router.get_outcomes(MODEL)]
    assert sum(outcomes.edge_exit for outcomes in counted) == who[AnsweredBy.EDGE_EXIT]
    assert sum(outcomes.cloud_tail for outcomes in counted) == who[AnsweredBy.CLOUD_TAIL]
