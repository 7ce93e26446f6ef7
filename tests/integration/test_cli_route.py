"""``splitmesh route goals``, ``policy``, ``why`` and ``decide`` against a router and a registry that run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from services.router.app import build
from services.router.config import RouterSettings
from splitmesh.client.routing import Goals, Outcomes, RoutingClient
from splitmesh.kernel.lifecycle import Host
from splitmesh.model.manifest import OUTCOMES
from splitmesh.model.outcomes import CalibrationOutcomes, Part
from tests.integration.command_line import Ended, refused, splitmesh_here
from tests.integration.small_model import LABELS, control_plane, push_small

MODEL = "small"
SURE, UNSURE = "0.99,0.005,0.005", "0.5,0.3,0.2"


@dataclass(frozen=True)
class World:
    run: Callable[..., Awaitable[Ended]]
    routing: RoutingClient


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with control_plane(tmp_path) as plane:
        await push_small(plane.registry, MODEL, artifacts={OUTCOMES: measured()})
        await plane.registry.set_alias(MODEL, "production", 1)
        settings = RouterSettings(data_dir=tmp_path / "router", static_addresses=plane.addresses, drain_s=1.0)
        async with Host("router", settings, build) as host:
            addresses = f"{plane.addresses},router={host.address}"

            async def run(*arguments: object) -> Ended:
                return await asyncio.to_thread(splitmesh_here, "route", *arguments, STATIC_ADDRESSES=addresses)

            yield World(run, RoutingClient(plane.channels(router=host.address)))


def measured(n: int = 900) -> bytes:
    """Sure and right; none is strange, but the version can tell."""
    whole, sure = np.arange(n) % 3, np.linspace(0.9, 1.0, n)
    rows = np.repeat(((1 - sure) / 2)[:, None], 3, axis=1)
    rows[np.arange(n), whole] = sure
    part = np.full(n, int(Part.HOLDOUT), np.uint8)
    return CalibrationOutcomes(
        rows[:, None, :].astype(np.float32), whole, part, strange=np.zeros(n, np.bool_), names=LABELS
    ).to_bytes()


async def test_goals_are_shown_stated_bit_by_bit_and_taken_back(world: World) -> None:
    shown = await world.run("goals", MODEL)
    assert "nobody stated any" in shown.out
    first = ("--max-disagreement", 0.05, "--max-missed", "vertical=0.01", "--max-false-alarms", "plain=0.02")
    stated = (await world.run("goals", MODEL, *first, "--no-escalate-unusual", "--json")).json
    assert stated["stated"]
    assert [limit["label"] for limit in stated["goals"]["classes"]] == ["vertical", "plain"]
    more = ("--max-false-alarms", "vertical=0.03", "--max-false-alarms", "plain=0", "--audit-share", 0.1)
    await world.run("goals", MODEL, *more, "--score", "energy", "--parameter", "temperature=2")
    shown = await world.run("goals", MODEL)
    for words in (
        "at most 5.00% of samples exit and disagree",
        "vertical missed",
        "at most 3.00% of the others' samples",
        "energy (temperature 2)",
        "do not escalate for it",
        "10.00% of the exits' answers",
    ):
        assert words in shown.out
    assert "plain" not in shown.out
    back = (await world.run("goals", MODEL, "--reset", "--json")).json["goals"]
    assert back == (await world.run("goals", MODEL, "--json")).json["goals"]
    assert (back["max_disagreement"], back["classes"], back["score"], back["escalate_unusual"]) == (0.05, [], "", None)


async def test_what_follows_in_production_is_shown_and_a_class_that_is_not_known_is_named(world: World) -> None:
    stated = await world.run("goals", MODEL, "--max-missed", "vertical=0.02")
    assert f"{MODEL}:1, in production: from 0.9" in stated.out
    assert stated.err == ""
    mistyped = await world.run("goals", MODEL, "--max-missed", "vertcal=0.01")
    assert mistyped.code == 0
    assert f"warning: {MODEL}:1, in production: everything escalates" in mistyped.err
    assert "'vertcal', which this version does not know: it names" in mistyped.err
    as_json = await world.run("goals", MODEL, "--delta", 0.1, "--json")
    assert as_json.json["policy"]["threshold"] > 1
    assert "everything escalates" in as_json.err
    assert (await world.run("goals", MODEL, "--json")).json["policy"] is None


async def test_goals_of_a_model_that_is_not_in_production_are_stated_all_the_same(world: World) -> None:
    stated = await world.run("goals", "other", "--max-disagreement", 0.03)
    assert (stated.code, stated.err) == (0, "")
    assert "production" not in stated.out
    assert "at most 3.00% of samples" in stated.out


async def test_costs_name_classes_and_every_other_mistake_costs_one(world: World) -> None:
    found = await world.run("goals", MODEL, "--cost", "vertical:plain=100", "--json")
    assert found.json["goals"]["costs"] == [0, 1, 1, 1, 0, 100, 1, 1, 0]
    assert "expected_cost, mistakes of 3 classes cost 1 to 100" in (await world.run("goals", MODEL)).out
    assert (await world.run("policy", MODEL, "--json")).json["score"] == "expected_cost"
    assert (await world.run("goals", MODEL, "--cost", "none", "--json")).json["goals"]["costs"] == []


SENSELESS_GOALS: tuple[tuple[object, ...], ...] = (
    ("--max-disagreement", 1.5),
    ("--max-missed", "vertical"),
    ("--max-missed", "=0.1"),
    ("--max-missed", "vertical=much"),
    ("--max-missed", "vertical=0.1", "--max-missed", "vertical=0.2"),
    ("--cost", "vertical=3"),
    ("--cost", "vertical:round=3"),
    ("--cost", "vertical:vertical=3"),
    ("--cost", "vertical:plain=-3"),
    ("--score", "guess"),
    ("--parameter", "temperature=2"),
)


async def test_goals_that_make_no_sense_are_refused_in_one_line(world: World) -> None:
    for options in SENSELESS_GOALS:
        refused(await world.run("goals", MODEL, *options), "FIELD_INVALID")
    assert not (await world.routing.get_goals(MODEL)).stated


async def test_a_policy_shows_its_promises_and_why(world: World) -> None:
    await world.run("goals", MODEL, "--max-missed", "vertical=0.02")
    for reference in ((MODEL,), (f"{MODEL}:1",), (MODEL, "--version", 1)):
        shown = await world.run("policy", *reference)
        assert f"{MODEL}:1, policy" in shown.out
        assert "samples of class vertical exit and say another class" in shown.out
        assert "Promised with a probability of 0.95" in shown.out
        assert "100.0% of 900 calibration samples" in shown.out
    await world.run("goals", MODEL, "--max-missed", "dent=0.02")
    escalating = await world.run("policy", MODEL)
    assert "everything escalates" in escalating.out
    assert "'dent'" in escalating.out
    refused(await world.run("policy", MODEL, "--version", 7), "VERSION_NOT_FOUND")
    refused(await world.run("policy", f"{MODEL}@staging"), "ALIAS_NOT_FOUND")


async def test_why_says_who_answered_and_for_which_reasons(world: World) -> None:
    assert f"{MODEL}: no reports yet" in (await world.run("why", MODEL)).out
    counts = Outcomes(
        edge_exit=70, cloud_tail=20, edge_fallback={"BUDGET_SPENT": 10}, hard={"UNSURE": 24, "UNUSUAL": 6}
    )
    await world.routing.report_outcomes(MODEL, 1, counts, node="mec-1", boot_id="b", sequence=1)
    (found,) = (await world.run("why", MODEL, "--json")).json
    assert (found["decided"], found["hard"]["UNSURE"], found["stayed"]) == (100, 24, {"BUDGET_SPENT": 10})
    shown = (await world.run("why", MODEL)).out
    for words in ("mec-1", "70 (70.0%)", "UNSURE", "24 (80.0%)", "Why hard samples were not escalated", "BUDGET_SPENT"):
        assert words in shown


async def test_a_sample_is_decided_by_a_policy_or_by_a_rule(world: World) -> None:
    unknown = await world.run("decide", "--policy", f"{MODEL}:1", "--probabilities", SURE)
    assert "hard (UNUSUAL)" in unknown.out
    assert "only --features tell" in unknown.out
    await world.routing.set_goals(MODEL, Goals(0.02, escalate_unusual=False))
    easy = await world.run("decide", "--policy", f"{MODEL}:1", "--probabilities", SURE)
    assert easy.out.startswith("easy (SURE): its ease is 0.99")
    assert "it stays" in easy.out
    hard = (await world.run("decide", "--policy", f"{MODEL}:1", "--probabilities", UNSURE, "--json")).json
    assert (hard["hard"], hard["escalate"], hard["why"], hard["label"]) == (True, True, "UNSURE", 0)
    own = ("--score", "CrossEntropy", "--threshold", 0.5, "--probabilities", "0.7,0.3")
    assert "hard (UNSURE)" in (await world.run("decide", *own)).out
    assert "the ease is undefined" in (await world.run("decide", *own[:-1], "nan,1")).out
    nothing = ("--score", "ibt", "--threshold", 0.5, "--parameter", "nothing_ease=1", "--boxes", "")
    assert "easy (SURE)" in (await world.run("decide", *nothing)).out


async def test_a_site_without_room_keeps_a_hard_sample_and_says_so(world: World) -> None:
    await world.routing.set_goals(MODEL, Goals(0.02, escalate_unusual=False))
    site = await world.run("site", "south", "--uplink-mbps", 0.001)
    assert site.code == 0, site
    crossing = ("--site", "south", "--size-bytes", 50_000_000)
    asked = ("decide", "--policy", f"{MODEL}:1", "--probabilities", UNSURE, *crossing)
    found = [(await world.run(*asked, "--json")).json for _ in range(3)]
    assert all(each["hard"] for each in found)
    # One may cross, on credit for days.
    assert [each["escalate"] for each in found][1:] == [False, False]
    assert "125 bytes/s" in found[-1]["refused"]
    assert "hard (UNSURE)" in (await world.run(*asked)).out
    assert (await world.run(*asked[:4], SURE, *crossing, "--json")).json["refused"] == ""


INCOMPLETE: tuple[tuple[object, ...], ...] = (
    (),
    ("--probabilities", SURE),
    ("--policy", f"{MODEL}:1"),
    ("--policy", f"{MODEL}:1", "--score", "margin", "--threshold", 0.5, "--probabilities", SURE),
    ("--score", "margin", "--probabilities", SURE),
    ("--score", "margin", "--threshold", 0.5, "--probabilities", SURE, "--boxes", "0.5"),
)


def test_a_question_that_is_not_complete_says_what_is_missing() -> None:
    for options in INCOMPLETE:
        ended = splitmesh_here("route", "decide", *options)
        assert ended.code == 2
        assert "give" in ended.err or "go together" in ended.err


SENSELESS: tuple[tuple[tuple[object, ...], str], ...] = (
    (("--policy", f"{MODEL}:1", "--boxes", "0.5"), "FIELD_INVALID"),
    (("--policy", f"{MODEL}:1", "--probabilities", "0.5;0.5"), "FIELD_INVALID"),
    (("--policy", f"{MODEL}:1", "--probabilities", "0.5,0.5"), "TENSOR_SHAPE_MISMATCH"),
    (("--policy", "nothing:1", "--probabilities", SURE), "MODEL_NOT_FOUND"),
    (("--score", "guess", "--threshold", 0.5, "--probabilities", SURE), "FIELD_INVALID"),
)


async def test_a_question_that_makes_no_sense_is_refused(world: World) -> None:
    for options, reason in SENSELESS:
        refused(await world.run("decide", *options), reason)
