"""A head whose version has rates: what crosses gets smaller when the link narrows and better again when it widens."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from splitmesh.client import Answer, AnsweredBy, Mesh
from splitmesh.model.preprocess import Preprocess
from splitmesh.testing.links import LinkProfile
from splitmesh.testing.relay import LinkRelay
from tests.support.coded import coded_version
from tests.support.models import HARD, HARD_LABEL, picture
from tests.support.worlds import World, world

NAME = "rated"
SIDE = 64
RATES = [(2, 1), (2, 16), (1, 64)]
FAST = LinkProfile("fast", 100.0, 100.0, 5.0)
NARROW = replace(FAST, uplink_mbps=0.2)
LONGEST_S = 20.0


def noisy(seed: int) -> Image.Image:
    """Grey on the whole, and hardly to be compressed."""
    pixels = np.random.default_rng(seed).normal(0.45 * 255, 40, (SIDE, SIDE)).clip(0, 255)
    return Image.fromarray(pixels.astype(np.uint8))


def frame(seed: int) -> bytes:
    file = io.BytesIO()
    noisy(seed).save(file, "PNG")
    return file.getvalue()


def rated_version() -> dict[str, bytes]:
    pipeline = Preprocess(width=SIDE, height=SIDE, mode="L")
    return coded_version(pipeline.batch([noisy(seed) for seed in range(20)]), RATES, preprocess=pipeline).artifacts


@pytest.fixture
async def edge(tmp_path: Path, registered: Path) -> AsyncIterator[World]:
    async with world(tmp_path, registered) as made:
        await made.registry.create_version(NAME, rated_version(), created_by="push")
        await made.registry.set_alias(NAME, "production", 1)
        yield made


@pytest.fixture
async def relay(edge: World) -> AsyncIterator[LinkRelay]:
    await edge.start("tail")
    async with LinkRelay(edge.addresses["tail"], FAST) as made:
        edge.addresses["tail"] = made.address
        yield made


@pytest.fixture
async def gateway(edge: World, relay: LinkRelay) -> Mesh:
    await edge.start("head", models=NAME)
    return await edge.ready_mesh(deadline_ms=5000)


async def until_rate(gateway: Mesh, *wanted: int) -> list[Answer]:
    """Send frames until one crosses at one of these rates; every answer."""
    answers: list[Answer] = []
    async with asyncio.timeout(LONGEST_S):
        while not answers or answers[-1].rate not in wanted:
            answers.append(await gateway.infer(frame(len(answers))))
    return answers


async def test_the_best_rate_crosses_while_the_link_carries_it(gateway: Mesh) -> None:
    answer = await gateway.infer(picture(HARD, side=SIDE))
    assert (answer.answered_by, answer.label.name, answer.rate) == (AnsweredBy.CLOUD_TAIL, HARD_LABEL, 0)


async def test_a_link_that_narrows_gets_fewer_bytes_and_one_that_widens_the_best_again(
    gateway: Mesh, relay: LinkRelay
) -> None:
    best = (await until_rate(gateway, 0))[-1]
    relay.set_profile(NARROW)
    down = await until_rate(gateway, 1, 2)
    assert down[-1].uplink_bytes < 0.6 * best.uplink_bytes
    relay.set_profile(FAST)
    up = await until_rate(gateway, 0)
    for answer in (*down, *up):
        assert answer.answered_by is AnsweredBy.CLOUD_TAIL
        assert answer.label.name == "grey"


async def test_a_restart_with_the_registry_gone_still_has_the_tables(edge: World, relay: LinkRelay) -> None:
    await edge.start("head", models=NAME)
    mesh = await edge.ready_mesh(deadline_ms=5000)
    assert (await mesh.infer(frame(0))).rate == 0
    for service in ("registry", "head"):
        await edge.stop(service)
    del edge.addresses["head"]
    await edge.start("head", models=NAME)
    again = await edge.ready_mesh(deadline_ms=5000)
    answer = await again.infer(frame(0), retries=20)
    assert (answer.answered_by, answer.rate) == (AnsweredBy.CLOUD_TAIL, 0)
