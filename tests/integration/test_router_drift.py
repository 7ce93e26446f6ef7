"""Drift through a router that runs: heads tell of samples, policies tighten at once, people and programs see why."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from services.router.app import build
from services.router.config import RouterSettings
from services.router.drift import line as drift_line
from services.router.drift.collected import UNIT_S
from splitmesh.client.drift import DriftClient
from splitmesh.client.routing import Goals, Outcomes, RoutingClient, Sight
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.lifecycle import Host
from splitmesh.model.manifest import OUTCOMES
from splitmesh.routing.audit import Counts, Stratum
from tests.integration.command_line import Ended, refused, splitmesh_here
from tests.integration.small_model import LABELS, ControlPlane, control_plane, push_small
from tests.support.outcomes import outcomes_of

MODEL, WAIT_S = "small", 20.0
WRONG = [Sight("cam-1", 0, 0.97, tail_class=1, audited=True)] * 20


@dataclass
class World:
    plane: ControlPlane
    address: str
    sequence: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def __post_init__(self) -> None:
        channels = self.plane.channels(router=self.address)
        self.routing, self.drift = RoutingClient(channels), DriftClient(channels)

    async def report(self, sights: list[Sight], audits: dict[Stratum, Counts] | None = None, version: int = 1) -> None:
        await self.routing.report_outcomes(
            MODEL,
            version,
            Outcomes(),
            node="mec-1",
            boot_id=f"b{id(self)}",
            sequence=next(self.sequence),
            sights=sights,
            audits=audits,
        )

    async def run(self, *arguments: object) -> Ended:
        addresses = f"{self.plane.addresses},router={self.address}"
        return await asyncio.to_thread(splitmesh_here, "route", *arguments, STATIC_ADDRESSES=addresses)


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[ControlPlane]:
    async with control_plane(tmp_path) as made, asyncio.timeout(2 * WAIT_S):
        outcomes = outcomes_of(np.linspace(0.4, 1.0, 600), np.arange(600) >= 12).to_bytes()
        await push_small(made.registry, MODEL, artifacts={OUTCOMES: outcomes})
        yield made


@asynccontextmanager
async def router(plane: ControlPlane, **changes: object) -> AsyncIterator[World]:
    values = {"data_dir": plane.folder / "router", "static_addresses": plane.addresses, "drain_s": 2.0}
    async with Host("router", RouterSettings.model_validate(values | changes), build) as host:
        yield World(plane, host.address)


def escalated(n: int) -> list[Sight]:
    """Of a camera where everything escalates, each a unit of its own; the exit is wrong where it is unsure."""
    eases = np.random.default_rng(1).beta(3, 1, n)
    return [
        Sight("cam-1", 0, float(ease), tail_class=int(ease < 0.6), age_ms=(n - 1 - i) * UNIT_S * 1e3)
        for i, ease in enumerate(eases)
    ]


async def test_a_drift_tightens_the_policy_of_its_camera_within_a_second_and_resolving_frees_it(
    plane: ControlPlane,
) -> None:
    async with router(plane) as world, aclosing(world.routing.watch_policy(MODEL, 1, "mec-1")) as policies:
        before = await anext(policies)
        assert before.overrides == ()
        begun = time.monotonic()
        await world.report(WRONG)
        tightened = await anext(policies)
        assert time.monotonic() - begun < 1
        (override,) = tightened.overrides
        assert (override.camera, override.label, override.threshold > 1) == ("cam-1", "", True)
        assert tightened.threshold == before.threshold
        found = await world.drift.get_drift(MODEL)
        (event,) = found.events
        assert (event.number, event.kind, event.state, event.camera) == (1, "disagreement", "tightened", "cam-1")
        assert found.sights == {1: 20}
        resolved = await world.drift.resolve(1)
        assert resolved.state == "resolved"
        assert (await anext(policies)).overrides == ()


async def test_samples_since_a_drift_bring_a_threshold_of_their_own(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift_line, "SETTLING", -timedelta(hours=1))
    async with router(plane) as world, aclosing(world.routing.watch_policy(MODEL, 1, "mec-1")) as policies:
        await world.routing.set_goals(MODEL, Goals(max_disagreement=0.05))
        await anext(policies)
        await world.report(WRONG)
        async with aclosing(world.drift.watch_drift(MODEL)) as events:
            assert (await anext(events)).state == "tightened"
            await world.report(escalated(1000))
            event = await anext(events)
            assert (event.number, event.state) == (1, "recalibrated")
        while not (policy := await anext(policies)).overrides or policy.overrides[0].threshold > 1:
            pass
        assert policy.overrides[0].threshold == event.threshold < 1
        assert "at most 0.05 of new samples" in policy.overrides[0].why
        await world.routing.set_goals(MODEL, Goals(max_disagreement=0.01))
        while (policy := await anext(policies)).max_disagreement != 0.01:
            pass
        assert policy.overrides[0].threshold > 1


async def test_a_drift_of_one_class_names_it_as_heads_do(plane: ControlPlane) -> None:
    async with router(plane) as world:
        for ease in (*[0.97] * 6, 0.9):
            await world.report([Sight("cam-1", said, 0.97 if said == 0 else ease) for said in (0, 1)] * 500)
            await world.report([Sight("cam-1", 0, 0.97), Sight("cam-1", 1, ease)] * 500)
        async with aclosing(world.drift.watch_drift(MODEL)) as events:
            event = await anext(events)
        assert (event.camera, event.label) == ("cam-1", LABELS[1])
        policy = await world.routing.get_policy(MODEL, 1)
        assert [(one.camera, one.label) for one in policy.overrides] == [("cam-1", LABELS[1])]


async def test_a_router_that_restarts_knows_its_drifts_and_followers_hear_what_changed(plane: ControlPlane) -> None:
    async with router(plane, port=0) as world:
        await world.report(WRONG)
        async with aclosing(world.drift.watch_drift(MODEL)) as events:
            await anext(events)
    async with router(plane) as world:
        policy = await world.routing.get_policy(MODEL, 1)
        assert [override.camera for override in policy.overrides] == ["cam-1"]
        await world.drift.resolve(1)
        await world.report([Sight("cam-2", 0, 0.97, tail_class=1, audited=True)] * 20)
        async with aclosing(world.drift.watch_drift("", after=1)) as events:
            assert (await anext(events)).number == 2


async def test_a_watch_that_is_opened_again_and_again_tells_each_change_once(plane: ControlPlane) -> None:
    async with router(plane, watch_stream_s=0.05) as world, aclosing(world.drift.watch_drift(MODEL)) as events:
        told = []
        for camera in ("cam-1", "cam-2"):
            await world.report([Sight(camera, 0, 0.97, tail_class=1, audited=True)] * 20)
            told.append(await anext(events))
        await world.drift.resolve(1)
        told.append(await anext(events))
        await world.drift.resolve(2)
        told.append(await anext(events))
    assert [(event.number, event.state) for event in told] == [
        (1, "tightened"),
        (2, "tightened"),
        (1, "resolved"),
        (2, "resolved"),
    ]


async def test_bad_requests_are_refused_with_what_is_wrong(plane: ControlPlane) -> None:
    async with router(plane) as world:
        for call, reason in (
            (world.drift.get_drift("No Model"), Reason.FIELD_INVALID),
            (anext(world.drift.watch_drift("No Model")), Reason.FIELD_INVALID),
            (world.drift.resolve(0), Reason.FIELD_INVALID),
            (world.drift.resolve(7), Reason.DRIFT_NOT_FOUND),
        ):
            with pytest.raises(MeshError) as caught:
                await call
            assert caught.value.reason is reason
        nothing = await world.drift.get_drift("unheard-of")
        assert (nothing.events, nothing.audits, nothing.sights) == ((), (), {})


async def test_the_command_line_shows_drifts_and_audits_and_resolves(plane: ControlPlane) -> None:
    async with router(plane) as world:
        assert "nothing has drifted" in (await world.run("drift", MODEL)).out
        await world.report(WRONG, {Stratum("cam-1", "OK", 4): Counts(1000, 50, 5)})
        async with aclosing(world.drift.watch_drift(MODEL)) as events:
            await anext(events)
        shown = (await world.run("drift", MODEL)).out
        for words in ("cam-1", "disagreement", "escalates", "10.00%", "0 of 200"):
            assert words in shown, shown
        as_json = (await world.run("drift", MODEL, "--json")).json
        assert [event["number"] for event in as_json["events"]] == [1]
        assert [(audit["camera"], audit["rate"]) for audit in as_json["audits"]] == [("", 0.1), ("cam-1", 0.1)]
        assert as_json["audits"][0]["low"] < 0.1 < as_json["audits"][0]["high"]
        assert (await world.run("resolve", 1)).out == f"drift 1 of {MODEL} v1 is resolved\n"
        assert (await world.run("resolve", 1, "--json")).json["state"] == "resolved"
        refused(await world.run("resolve", 9), "DRIFT_NOT_FOUND")
        refused(await world.run("watch", "--exec", "'"), "FIELD_INVALID")


async def test_watching_runs_a_command_for_each_new_drift_with_the_event_as_json(
    plane: ControlPlane, tmp_path: Path
) -> None:
    script = tmp_path / "train.py"
    script.write_text("import sys, json; print('training for', json.load(sys.stdin)['camera']); sys.exit(3)")
    async with router(plane) as world:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "from splitmesh.cli import main; main()"),
            *("route", "watch", MODEL, "--json", "--exec", f"{sys.executable} {script}"),
            env={"SPLITMESH_STATIC_ADDRESSES": f"router={world.address}", "PATH": "/usr/bin:/bin"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            for camera in ("cam-1", "cam-2"):
                await world.report([Sight(camera, 0, 0.97, tail_class=1, audited=True)] * 20)
                assert json.loads(await process.stdout.readline())["camera"] == camera
                assert (await process.stdout.readline()).decode() == f"training for {camera}\n"
                assert b"ended with code 3" in await process.stderr.readline()
            await world.drift.resolve(1)
            assert json.loads(await process.stdout.readline())["state"] == "resolved"
            process.send_signal(signal.SIGINT)
            out, _ = await process.communicate()
            assert b"training" not in out
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
