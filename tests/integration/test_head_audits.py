"""A head's sure answers are asked of the tail behind their back, and the router hears how often they differ."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from splitmesh.client import Answer, AnsweredBy, Mesh
from splitmesh.client.drift import DriftClient, Drifts
from splitmesh.client.routing import Goals
from splitmesh.kernel.channels import Channels
from splitmesh.kernel.discovery_static import StaticDiscovery
from tests.support.exit_nets import NOISE, pictures_of, staged_classifier
from tests.support.models import EASY, HARD, picture
from tests.support.worlds import MODEL, WAIT_S, World, answered_by, world

FRAMES, FEW = 30, 10


@pytest.fixture
async def drifts(tmp_path: Path, registered: Path) -> AsyncIterator[tuple[World, DriftClient]]:
    """Every second answer of a sure exit is audited, as far as that may be."""
    async with world(tmp_path, registered) as made:
        await made.routing.set_goals(MODEL, Goals(max_disagreement=0.4, audit_share=0.5))
        await made.start("tail")
        await made.start("head")
        channels = Channels(StaticDiscovery({"router": [made.addresses["router"]]}))
        yield made, DriftClient(channels)
        await channels.close()


async def told(client: DriftClient, complete: Callable[[Drifts], bool], model: str = MODEL) -> Drifts:
    """What the router knows, once that is complete."""
    async with asyncio.timeout(WAIT_S):
        while True:
            drifts = await client.get_drift(model)
            if complete(drifts):
                return drifts
            await asyncio.sleep(0.05)


def of(drifts: Drifts, camera: str) -> tuple[int, int, float | None]:
    """Accepted and audited answers of a camera, and how often audited ones differ."""
    found = [(one.accepted, one.audited, one.rate) for one in drifts.audits if one.camera == camera]
    return found[0] if found else (0, 0, None)


async def asked(mesh: Mesh, brightness: float, frames: int, camera: str) -> list[Answer]:
    return [await mesh.infer(picture(brightness), camera=camera) for _ in range(frames)]


async def test_the_router_hears_of_every_frame_and_how_often_audited_answers_differ(
    drifts: tuple[World, DriftClient],
) -> None:
    made, client = drifts
    mesh = await made.ready_mesh()
    await answered_by(mesh, HARD, AnsweredBy.EDGE_EXIT)  # the policy has come
    agreeing = await asked(mesh, EASY, FRAMES, "line-1")
    # So few that they are no drift yet, which would make them escalate.
    differing = await asked(mesh, HARD, FEW, "line-2")
    answers = agreeing + differing
    assert {answer.answered_by for answer in answers} == {AnsweredBy.EDGE_EXIT}
    assert all(answer.uplink_bytes == 0 for answer in answers)
    audited = [answer for answer in answers if answer.routing is not None and answer.routing.audited]
    assert 0.2 * len(answers) < len(audited) <= 0.5 * len(answers) + 4

    def complete(drifts: Drifts) -> bool:
        (easy, checked, _), (hard, differed, _) = of(drifts, "line-1"), of(drifts, "line-2")
        return (easy, hard) == (FRAMES, FEW) and checked > 1 and differed > 1

    found = await told(client, complete)
    assert of(found, "line-1")[2] == 0.0
    assert of(found, "line-2")[2] == 1.0
    assert found.sights[1] > 1


async def test_without_a_tail_frames_are_answered_and_counted_but_nothing_is_audited(
    drifts: tuple[World, DriftClient],
) -> None:
    made, client = drifts
    mesh = await made.ready_mesh()
    await answered_by(mesh, HARD, AnsweredBy.EDGE_EXIT)
    await made.stop("tail")
    await answered_by(mesh, HARD, AnsweredBy.EDGE_EXIT)
    answers = await asked(mesh, EASY, FRAMES, "line-3")
    assert {answer.answered_by for answer in answers} == {AnsweredBy.EDGE_EXIT}
    found = await told(client, lambda drifts: of(drifts, "line-3")[0] == FRAMES)
    assert of(found, "line-3")[1] == 0


async def test_what_an_early_exit_answered_is_audited_as_well(tmp_path: Path, registered: Path) -> None:
    async with world(tmp_path, registered) as made:
        await made.registry.create_version("staged", staged_classifier().artifacts(), created_by="compressor")
        await made.registry.set_alias("staged", "production", 1)
        await made.routing.set_goals("staged", Goals(max_disagreement=0.02, audit_share=0.5))
        await made.start("tail")
        await made.start("head", models="staged")
        mesh = await made.ready_mesh()
        pictures = pictures_of(60, noise=NOISE, seed=77)[0]
        async with asyncio.timeout(WAIT_S):
            while not any([(await mesh.infer(one[None])).exit == 0 for one in pictures[:10]]):
                pass  # until the policy has come
        answers = [await mesh.infer(one[None]) for one in pictures]
        audited = [answer.exit for answer in answers if answer.routing is not None and answer.routing.audited]
        assert 0 in audited
        channels = Channels(StaticDiscovery({"router": [made.addresses["router"]]}))
        await told(DriftClient(channels), lambda drifts: of(drifts, "")[1] >= len(audited) // 2, "staged")
        await channels.close()
