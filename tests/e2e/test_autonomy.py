"""A host whose cable is cut: not evicted, still serving, serving after a reboot, and afterwards nothing is missing and
nothing counted twice.

Real processes. The cable is relays between the edge and everything else; a reboot is SIGKILL and a start; where the host
allows it the power cut is one, which the disk sees too."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, closing
from pathlib import Path
from typing import NamedTuple

import pytest
import pytest_asyncio

from edge.head.spooling import FOLDER, OUTCOMES
from splitmesh.api.fleet.v1 import fleet_pb2, fleet_pb2_grpc
from splitmesh.client import Answer, AnsweredBy, Mesh
from splitmesh.client.fleet import FleetClient
from splitmesh.client.fleet_deployments import DeploymentState
from splitmesh.client.fleet_nodes import NodeState, Target
from splitmesh.client.routing import NodeOutcomes, RoutingClient
from splitmesh.errors import MeshError
from splitmesh.samples.beside import Beside, folders_of
from splitmesh.spool.damaged import FILE
from splitmesh.testing.mesh import LocalMesh, ProcessLauncher
from tests.support.models import EASY, EASY_LABEL, HARD_EXIT_LABEL, HARD_LABEL, picture
from tests.support.power_cut import CutDisk, why_not
from tests.support.spooling_heads import balance_at, hard_frame
from tests.support.worlds import MODEL, ROOT, serving

WAIT_S = 60.0
REPORT_S = 0.25
SERVICES = ("registry", "router", "tail", "head")
WITH_FLEET = (*SERVICES, "fleet", "agent")
NODE = "agent-1"


class Line:
    """One host's cameras: what they sent, and who answered."""

    def __init__(self, mesh: LocalMesh) -> None:
        self.mesh = mesh
        self.answers: list[Answer] = []
        self._frames = 0

    async def send(self, gateway: Mesh, *, easy: int, hard: int) -> list[Answer]:
        """Each frame is answered, and rightly by whom it is answered."""
        answers = []
        for number in range(easy + hard):
            self._frames += 1
            frame = picture(EASY) if number < easy else hard_frame(self._frames)
            answer = await gateway.infer(frame, camera=f"camera-{self._frames}")
            right = (
                EASY_LABEL
                if number < easy
                else {AnsweredBy.CLOUD_TAIL: HARD_LABEL}.get(answer.answered_by, HARD_EXIT_LABEL)
            )
            assert answer.label.name == right
            answers.append(answer)
        self.answers += answers
        return answers

    def by(self, who: AnsweredBy) -> int:
        return sum(answer.answered_by is who for answer in self.answers)

    async def reported(self) -> list[NodeOutcomes]:
        """What the router knows, asked past the cable."""
        return await RoutingClient(self.mesh.channels).get_outcomes(MODEL)

    def given(self) -> Counts:
        """Answers, as a router counts them."""
        return Counts(
            *(self.by(who) for who in (AnsweredBy.EDGE_EXIT, AnsweredBy.CLOUD_TAIL, AnsweredBy.EDGE_FALLBACK))
        )

    async def converged(self) -> None:
        """Until the router has counted every answer; never more of any kind than there were."""
        async with asyncio.timeout(WAIT_S):
            while True:
                told, given = counted(await self.reported()), self.given()
                assert all(n <= most for n, most in zip(told, given, strict=True)), (told, given)
                if told == given:
                    return
                await asyncio.sleep(0.05)

    async def noted(self, data: Path) -> None:
        """Until every answer is counted on the head's disk, or was told: what comes later a kill may take."""
        async with asyncio.timeout(WAIT_S):
            while True:
                if counted(await self.reported()).plus(spooled(data)) == self.given():
                    return
                await asyncio.sleep(0.02)

    async def told_at_least(self) -> None:
        """Until the router has counted no less than was given."""
        async with asyncio.timeout(WAIT_S):
            while True:
                told = counted(await self.reported())
                if all(n >= least for n, least in zip(told, self.given(), strict=True)):
                    return
                await asyncio.sleep(0.05)

    async def answered_by(self, gateway: Mesh, who: AnsweredBy, *, easy: int = 0, hard: int = 0) -> None:
        """Sends until the first answer that comes from there."""
        async with asyncio.timeout(WAIT_S):
            while True:
                answers = await self.send(gateway, easy=easy, hard=hard)
                if answers[0].answered_by is who:
                    return
                await asyncio.sleep(0.02)


class Counts(NamedTuple):
    """Answers by who gave them."""

    exit: int
    tail: int
    fallback: int

    def plus(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(self, other, strict=True)))


def counted(nodes: Sequence[NodeOutcomes]) -> Counts:
    outcomes = [node.outcomes for node in nodes]
    return Counts(
        sum(one.edge_exit for one in outcomes),
        sum(one.cloud_tail for one in outcomes),
        sum(sum(one.edge_fallback.values()) for one in outcomes),
    )


def spooled(data: Path) -> Counts:
    """In the reports on a head's disk, whether it runs or not."""
    with closing(sqlite3.connect(f"file:{data / FOLDER / FILE}?mode=ro", uri=True)) as db:
        bodies = [
            json.loads(body)["counts"]
            for (body,) in db.execute("SELECT body FROM records WHERE topic = ?", (OUTCOMES,))
        ]
    return Counts(
        sum(one["edge_exit"] for one in bodies),
        sum(one["cloud_tail"] for one in bodies),
        sum(sum(one["edge_fallback"].values()) for one in bodies),
    )


@asynccontextmanager
async def host(
    folder: Path, registered: Path, *, head_dir: Path | None = None, services: Sequence[str] = SERVICES
) -> AsyncIterator[LocalMesh]:
    shutil.copytree(registered, folder / "registry")
    head = {"models": MODEL, "switch_wait_s": "5", "report_interval_s": str(REPORT_S), "segment_threads": "1"}
    if head_dir is not None:
        head["data_dir"] = str(head_dir)
    async with LocalMesh(
        ProcessLauncher(ROOT, folder / "run"), folder, settings={"head": head}, services=services, cable=True
    ) as mesh:
        await serving(mesh.address("head"))
        yield mesh


@pytest_asyncio.fixture
async def line(tmp_path: Path, registered: Path) -> AsyncIterator[Line]:
    async with host(tmp_path, registered) as mesh:
        yield await settled(mesh)


async def settled(mesh: LocalMesh) -> Line:
    """Its exit answers easy frames and its tail hard ones; what it took to see that is counted."""
    made = Line(mesh)
    async with mesh.gateway(deadline_ms=3000) as gateway:
        await made.answered_by(gateway, AnsweredBy.EDGE_EXIT, easy=1)
        await made.answered_by(gateway, AnsweredBy.CLOUD_TAIL, hard=1)
    return made


async def test_cut_off_it_goes_on_serving_and_tells_everything_when_the_cable_is_back(line: Line) -> None:
    mesh = line.mesh
    async with mesh.gateway(deadline_ms=1500) as gateway:
        mesh.cut()
        await line.answered_by(gateway, AnsweredBy.EDGE_FALLBACK, hard=1)
        cut_off = await line.send(gateway, easy=20, hard=20)
        assert {answer.answered_by for answer in cut_off[:20]} == {AnsweredBy.EDGE_EXIT}
        assert {answer.answered_by for answer in cut_off[20:]} == {AnsweredBy.EDGE_FALLBACK}
        mesh.heal()
        await line.answered_by(gateway, AnsweredBy.CLOUD_TAIL, hard=1)
        await line.converged()
    await mesh.stop("head")
    balance = balance_at(mesh_dir(mesh) / FOLDER)
    assert balance.holds
    assert balance.dropped == {}


async def test_cut_off_and_rebooted_it_serves_from_its_own_disk_and_nothing_is_counted_twice(line: Line) -> None:
    mesh = line.mesh
    async with mesh.gateway(deadline_ms=1500) as gateway:
        mesh.cut()
        await line.send(gateway, easy=10, hard=10)
        await line.noted(mesh_dir(mesh))
        await mesh.kill("head")
        await mesh.start("head")
        await serving(mesh.address("head"))
        rebooted = await line.send(gateway, easy=10, hard=10)
        assert {answer.answered_by for answer in rebooted[:10]} == {AnsweredBy.EDGE_EXIT}
        assert {answer.answered_by for answer in rebooted[10:]} == {AnsweredBy.EDGE_FALLBACK}
        await line.noted(mesh_dir(mesh))
        await mesh.kill("head")
        await mesh.start("head")
        mesh.heal()
        await serving(mesh.address("head"))
        await line.answered_by(gateway, AnsweredBy.CLOUD_TAIL, hard=1)
        await line.converged()
    await mesh.stop("head")
    balance = balance_at(mesh_dir(mesh) / FOLDER)
    assert balance.holds
    assert balance.dropped == {}


@pytest.mark.skipif(bool(why_not()), reason=f"no power cut can be simulated here: {why_not()}")
async def test_after_a_power_cut_it_serves_with_the_cable_cut_and_every_acknowledged_count_and_sample_is_there(
    tmp_path: Path, registered: Path
) -> None:
    with CutDisk(tmp_path, size_bytes=160 << 20) as disk:
        data = disk.at / "head"
        async with host(tmp_path / "mesh", registered, head_dir=data) as mesh:
            line = await settled(mesh)
            async with mesh.gateway(deadline_ms=1500) as gateway:
                await line.send(gateway, easy=10, hard=10)
                await line.converged()
                mesh.cut()
                await line.send(gateway, easy=10, hard=10)
                await line.noted(data)
                kept = samples(data)
                on_disk = list(line.answers)
                loading = asyncio.create_task(endless(line, gateway))
                image = await asyncio.to_thread(disk.image)  # the power goes while frames are answered and written down
                loading.cancel()
                await asyncio.gather(loading, return_exceptions=True)
                await mesh.kill("head")
                disk.restart_from(image)
                assert kept <= samples(data)
                line.answers = on_disk
                await mesh.start("head")
                await serving(mesh.address("head"))
                rebooted = await line.send(gateway, easy=5, hard=5)
                assert {answer.answered_by for answer in rebooted[:5]} == {AnsweredBy.EDGE_EXIT}
                mesh.heal()
                await line.answered_by(gateway, AnsweredBy.CLOUD_TAIL, hard=1)
                # Of what was on its way to the disk when the power went some may be there too.
                await line.told_at_least()
            await mesh.stop("head")
            balance = balance_at(data / FOLDER)
            assert balance.holds
            assert balance.dropped == {}


async def test_a_host_of_a_fleet_is_not_evicted_serves_what_it_was_told_to_after_a_reboot_and_converges(
    tmp_path: Path, registered: Path
) -> None:
    async with host(tmp_path, registered, services=WITH_FLEET) as mesh:
        fleet, line = FleetClient(mesh.channels), await settled(mesh)
        await online(fleet, NodeState.ONLINE)
        deployed = await fleet.deploy(MODEL, 1, Target(nodes=(NODE,)))
        await done(fleet, deployed.id)
        before = await told(fleet)
        async with mesh.gateway(deadline_ms=1500) as gateway:
            mesh.cut()
            await online(fleet, NodeState.OFFLINE)
            # Cut off: not evicted, nothing told to anybody else, and the assignment stands.
            assert await told(fleet) == before
            assert [one.active_version for one in (await fleet.node(NODE)).serving] == [1]
            cut_off = await line.send(gateway, easy=5, hard=5)
            assert {answer.answered_by for answer in cut_off[:5]} == {AnsweredBy.EDGE_EXIT}
            await line.noted(mesh_dir(mesh))
            # A head that followed the alias would serve this one when it is back.
            await mesh.registry().set_alias(MODEL, "production", 2)
            for service in ("head", "agent"):
                await mesh.kill(service)
            for service in ("head", "agent"):
                await mesh.start(service)
            await serving(mesh.address("head"))
            rebooted = await line.send(gateway, easy=5, hard=5)
            assert {(answer.answered_by, answer.version) for answer in rebooted[:5]} == {(AnsweredBy.EDGE_EXIT, 1)}
            mesh.heal()
            await online(fleet, NodeState.ONLINE)
            await line.answered_by(gateway, AnsweredBy.CLOUD_TAIL, hard=1)
            await line.converged()
            assert {answer.version for answer in line.answers} == {1}
            assert [one.active_version for one in (await fleet.node(NODE)).serving] == [1]
            assert await told(fleet) == before
            await committed(mesh)
        await mesh.stop("head")
        balance = balance_at(mesh_dir(mesh) / FOLDER)
        assert (balance.holds, balance.queued, dict(balance.dropped)) == (True, 0, {})


async def online(fleet: FleetClient, state: NodeState) -> None:
    """Until the fleet says so of the host."""
    async with asyncio.timeout(WAIT_S):
        while True:
            if any((one.node, one.state) == (NODE, state) for one in await fleet.nodes()):
                return
            await asyncio.sleep(0.05)


async def done(fleet: FleetClient, deployment: str) -> None:
    async with asyncio.timeout(WAIT_S), aclosing(fleet.watch_deployment(deployment)) as watch:
        async for news in watch:
            if news.deployment.state is DeploymentState.DONE:
                return


async def told(fleet: FleetClient) -> tuple[set[str], set[str]]:
    """Every deployment and every task there ever was."""
    return {one.id for one in await fleet.deployments()}, {one.id for one in await fleet.tasks()}


async def committed(mesh: LocalMesh) -> None:
    """Until the fleet has the record of every sample that the head keeps; each of them once."""
    async with asyncio.timeout(WAIT_S):
        while True:
            stub = fleet_pb2_grpc.FleetServiceStub(await mesh.channels.to("fleet"))
            response = await stub.ListRecords(fleet_pb2.ListRecordsRequest(page_size=1000, edge="head-1"))
            ids = [json.loads(one.record.body)["id"] for one in response.records]
            assert len(set(ids)) == len(ids)
            kept = samples(mesh_dir(mesh))
            assert set(ids) <= kept
            if len(ids) == len(kept):
                return
            await asyncio.sleep(0.05)


async def endless(line: Line, gateway: Mesh) -> None:
    while True:
        try:
            await line.send(gateway, easy=1, hard=1)
        except MeshError:
            return


def samples(data: Path) -> set[str]:
    """Kept by the head, whether it runs or not."""
    return {one.record.id for one in Beside(lambda: folders_of(data)).all()}


def mesh_dir(mesh: LocalMesh) -> Path:
    """Where its head keeps its state."""
    return mesh._work_dir / "head"
