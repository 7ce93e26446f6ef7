"""Policies in the head: kept on disk, made into gates, and what happens to those that cannot be followed."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from edge.head import policies as module
from edge.head.active import ActiveModel
from edge.head.fitted import Fitted
from edge.head.policies import Policies
from splitmesh.client.registry import VersionInfo
from splitmesh.client.routing import OverrideInfo, PolicyInfo, RoutingClient
from splitmesh.errors import MeshError, Reason
from splitmesh.model.manifest import Manifest
from splitmesh.routing.gate import ESCALATE_ALL, Gate, Why
from splitmesh.routing.rule import EXPECTED_COST
from tests.support.exit_nets import LABELS, staged_classifier

CLASSES = len(LABELS)
WAIT_S = 10.0
GOOD = PolicyInfo(
    model="parts",
    version=3,
    revision=7,
    threshold=0.8,
    max_disagreement=0.02,
    delta=0.05,
    disagreement_bound=0.01,
    coverage=0.5,
    calibration_samples=100,
    why="",
    score="temperature",
    parameters={"temperature": 2.0},
    audit_share=0.015,
    escalate_unusual=True,
    overrides=(OverrideInfo("north", "", ESCALATE_ALL, "its ease fell"), OverrideInfo("", LABELS[1], 0.9, "")),
)


class Router:
    """Stands for :class:`RoutingClient`; sends what a test puts into it."""

    def __init__(self) -> None:
        self.sent: asyncio.Queue[PolicyInfo | Exception] = asyncio.Queue()
        self.watches = 0

    async def watch_policy(self, model: str, version: int, node: str) -> AsyncIterator[PolicyInfo]:
        """As the client's."""
        assert (model, version, node) == ("parts", 3, "head-1")
        self.watches += 1
        while True:
            one = await self.sent.get()
            if isinstance(one, Exception):
                raise one
            yield one


class World:
    """One version that follows a router."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "policies"
        self.router = Router()
        self.shares: list[float] = []
        self.heard = asyncio.Event()
        self.active = active()

    def policies(self) -> Policies:
        """As after a start of the head."""
        return Policies(self.folder, cast(RoutingClient, self.router), "head-1", self._told)

    def _told(self, model: str, version: int, share: float) -> None:
        assert (model, version) == ("parts", 3)
        self.shares.append(share)
        self.heard.set()

    async def followed(self, *sent: PolicyInfo | Exception) -> ActiveModel:
        """The version after the router sent this, and a last policy that tells that all was heard."""
        for one in (*sent, replace(GOOD, revision=0, threshold=0.123)):
            self.router.sent.put_nowait(one)
        seen: list[Gate] = []
        task = asyncio.create_task(self.policies().follow(self.active))
        async with asyncio.timeout(WAIT_S):
            while self.active.gate.threshold != 0.123:
                seen.append(self.active.gate)
                await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return self.active

    async def restarted(self) -> ActiveModel:
        """The version as a new start of the head finds it."""
        self.active = active()
        await self.policies().recall(self.active)
        return self.active


def active(manifest: Manifest | None = None, fitted: Fitted | None = None) -> ActiveModel:
    info = VersionInfo("parts", 3, 0, {}, "push", "", (), datetime(2026, 1, 1, tzinfo=UTC))
    manifest = manifest or staged_classifier().work.manifest
    return ActiveModel(info, manifest, cast(Any, None), None, fitted=fitted or Fitted())


def row(answer: int, sureness: float) -> np.ndarray:
    made = np.full((1, CLASSES), (1 - sureness) / (CLASSES - 1))
    made[0, answer] = sureness
    return made


async def in_force(world: World, policy: PolicyInfo) -> ActiveModel:
    """One policy, heard and kept."""
    world.router.sent.put_nowait(policy)
    task = asyncio.create_task(world.policies().follow(world.active))
    path = world.folder / "parts-3.json"
    async with asyncio.timeout(WAIT_S):
        while not (path.exists() and json.loads(path.read_bytes())["revision"] == policy.revision):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return world.active


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_a_policy_becomes_the_gate_and_its_share_of_audits_is_told(world: World) -> None:
    following = await in_force(world, GOOD)
    gate = following.gate
    assert (gate.threshold, gate.judge.rule.score, dict(gate.judge.rule.parameters)) == (
        0.8,
        "temperature",
        {"temperature": 2.0},
    )
    assert following.policy_revision == 7
    assert world.shares == [0.015]
    assert gate.verdict(row(0, 0.999), labels=LABELS).why is Why.SURE
    assert gate.verdict(row(0, 0.999), labels=LABELS, camera="north").why is Why.DRIFTED
    assert gate.verdict(row(1, 0.999), labels=LABELS).threshold == 0.9


async def test_a_head_without_its_router_starts_with_the_whole_policy_that_it_heard_last(world: World) -> None:
    before = (await in_force(world, GOOD)).gate
    world.shares.clear()
    again = await world.restarted()
    assert (again.policy_revision, world.shares) == (7, [0.015])
    for camera, answer, sureness in [("north", 0, 0.999), ("", 1, 0.9), ("", 2, 0.85), ("", 0, math.nan)]:
        about = {"camera": camera, "labels": LABELS}
        one, other = (gate.verdict(row(answer, sureness), **about) for gate in (before, again.gate))
        assert repr(one) == repr(other)


async def test_a_head_that_never_heard_a_policy_lets_nothing_pass(world: World) -> None:
    fresh = await world.restarted()
    assert fresh.gate.verdict(row(0, 1.0)).why is Why.NO_PROMISE
    assert (fresh.policy_revision, world.shares) == (0, [0.0])


def _without(field: str) -> Callable[[dict[str, Any]], Any]:
    return lambda kept: {name: value for name, value in kept.items() if name != field}


@pytest.mark.parametrize(
    "damage",
    [
        lambda kept: kept | {"threshold": math.nan},
        lambda kept: kept | {"threshold": -0.1},
        lambda kept: kept | {"threshold": "0.8x"},
        lambda kept: kept | {"audit_share": 0.6},
        lambda kept: kept | {"overrides": [{"camera": "north", "label": "", "threshold": math.inf}]},
        lambda kept: kept | {"of a later head": 1},
        lambda kept: {"threshold": 0.5},
        _without("threshold"),
        lambda kept: [kept],
    ],
)
async def test_a_damaged_file_lets_nothing_pass(
    world: World, damage: Callable[[dict[str, Any]], Any], caplog: pytest.LogCaptureFixture
) -> None:
    await in_force(world, GOOD)
    path = world.folder / "parts-3.json"
    path.write_text(json.dumps(damage(json.loads(path.read_bytes()))))
    again = await world.restarted()
    assert again.gate.verdict(row(0, 1.0)).why is Why.NO_PROMISE
    assert again.policy_revision == 0
    assert "cannot be read" in caplog.text


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
async def test_half_a_file_lets_nothing_pass(world: World, content: bytes) -> None:
    world.folder.mkdir()
    (world.folder / "parts-3.json").write_bytes(content)
    assert (await world.restarted()).gate.threshold == ESCALATE_ALL


async def test_a_file_that_is_far_too_large_is_not_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await in_force(world, GOOD)
    monkeypatch.setattr(module, "MAX_BYTES", 10)
    assert (await world.restarted()).gate.threshold == ESCALATE_ALL


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"score": "of a later router"}, "of a later router"),
        ({"parameters": {"later": 1.0}}, "later"),
        ({"parameters": {"temperature": 1e9}}, "temperature"),
        ({"costs": (0.0, 1.0, 1.0, 0.0)}, "costs"),
        ({"score": EXPECTED_COST, "parameters": {}, "costs": (0.0, 1.0, 1.0, 0.0)}, "classes"),
        ({"score": EXPECTED_COST, "parameters": {}}, "costs"),
        ({"threshold": math.nan}, "threshold"),
        ({"audit_share": 0.7}, "audit_share"),
        ({"overrides": (OverrideInfo("north", "", -1.0, ""),)}, "threshold"),
    ],
)
async def test_a_policy_that_cannot_be_followed_lets_nothing_pass_now_and_after_a_restart(
    world: World, changes: dict[str, Any], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    await in_force(world, GOOD)
    following = await in_force(world, replace(GOOD, **changes, revision=8))
    for one in (following, await world.restarted()):
        verdict = one.gate.verdict(row(0, 1.0), camera="south")
        assert (verdict.why, one.policy_revision) == (Why.NO_PROMISE, 8)
    assert set(world.shares[1:]) == {0.0}
    logged = [record for record in caplog.records if "cannot be followed" in record.message]
    assert {record.levelno for record in logged} == {logging.ERROR}
    assert "policy 8 of parts version 3" in logged[0].message
    assert words in logged[0].message


async def test_after_one_that_cannot_be_followed_the_next_one_is(world: World) -> None:
    await in_force(world, replace(GOOD, score="of a later router", revision=8))
    assert (await in_force(world, replace(GOOD, revision=9))).gate.threshold == 0.8


async def test_a_watch_that_ends_is_opened_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_S", 0.001)
    await world.followed(MeshError(Reason.FIELD_INVALID, "no"), RuntimeError("unforeseen"), GOOD)
    assert world.router.watches == 3


async def test_a_policy_that_cannot_be_kept_is_in_force_all_the_same(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.folder.write_text("no folder")
    await world.followed(GOOD)
    assert "not kept for a restart" in caplog.text


async def test_policies_of_versions_long_gone_are_let_go(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_FILES", 2)
    world.folder.mkdir()
    for age, name in enumerate(["parts-2", "parts-1", "other-1"]):
        (world.folder / f"{name}.json").write_text("{}")
        os.utime(world.folder / f"{name}.json", (1000 - age, 1000 - age))
    await in_force(world, GOOD)
    async with asyncio.timeout(WAIT_S):
        while len(left := sorted(path.name for path in world.folder.iterdir())) > 2:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert left == ["parts-2.json", "parts-3.json"]


async def test_an_old_router_that_names_no_score_means_the_largest_probability(world: World) -> None:
    following = await in_force(world, replace(GOOD, score="", parameters={}))
    assert following.gate.judge.rule.score == "max_probability"
