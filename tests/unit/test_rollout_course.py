"""Deployments from request to end: waves, failures, hosts that are away, rollbacks, aliases, holds, restarts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.fleet.rollout.rollout import GRACE_US
from splitmesh.api.fleet.v1 import fleet_pb2 as pb
from splitmesh.errors import MeshError, Reason
from tests.support.rollout_world import MODEL, World, world

GATE = pb.Gate(shadow_pairs=50, max_pairs=2_000)
GRACE_S = GRACE_US / 1e6
MANY = [f"h{number:02}" for number in range(20)]


@pytest.fixture(params=["sqlite", "postgres"])
async def fleet(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path, request.param) as found:
        yield found


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as found:
        yield found


async def refused(call, reason: Reason) -> MeshError:  # type: ignore[no-untyped-def]
    with pytest.raises(MeshError) as caught:
        await call
    assert caught.value.reason is reason, caught.value
    return caught.value


# ---- all at once


async def test_every_host_that_is_connected_gets_the_version_and_the_deployment_is_done(fleet: World) -> None:
    fleet.add(*MANY, serves=1)
    made = await fleet.deploy(2)
    await fleet.settle()
    assert await fleet.state(made) == "DONE"
    assert set(fleet.active().values()) == {2}
    counts = (await fleet.get(made)).counts
    assert (counts.total, counts.serving, counts.failed, counts.offline) == (20, 20, 0, 0)


async def test_no_more_hosts_are_told_at_once_than_may_be(small: World) -> None:
    small.add(*MANY, serves=1)
    made = await small.deploy(2, max_parallel=3)
    await small.turn()
    assert (await small.get(made)).counts.under_way == 3
    small.deliver("h00")
    await small.turn()
    counts = (await small.get(made)).counts
    assert (counts.serving, counts.under_way, counts.waiting) == (1, 3, 16)


async def test_hosts_that_are_away_hold_up_nothing_and_get_the_version_when_they_come(fleet: World) -> None:
    fleet.add("here", serves=1)
    fleet.add("away", serves=1, online=False)
    made = await fleet.deploy(2, wave_percents=[50, 100])
    await fleet.settle()
    found = await fleet.get(made)
    assert await fleet.state(made) == "DONE"
    assert (found.counts.serving, found.counts.offline) == (1, 1)
    assert "1 are not connected" in found.message
    fleet.online("away")
    await fleet.settle()
    assert fleet.active() == {"here": 2, "away": 2}
    assert (await fleet.get(made)).counts.serving == 2


async def test_a_host_that_appears_later_and_fits_the_target_gets_the_newest_version(fleet: World) -> None:
    fleet.add("h1", serves=1)
    for version in (2, 3):
        await fleet.deploy(version)
        await fleet.settle()
    fleet.add("new")
    await fleet.settle()
    assert fleet.active()["new"] == 3
    assert [order.generation for order in fleet.nodes.heads["new"].ordered] == [1]


async def test_a_host_that_appears_while_a_deployment_rolls_gets_it_when_that_is_done(small: World) -> None:
    small.add("h1", "h2", serves=1)
    made = await small.deploy(2, wave_percents=[50, 100])
    await small.turn()
    small.add("new", online=False)
    await small.settle()
    assert (await small.get(made)).counts.total == 3
    small.online("new")
    await small.settle()
    assert small.active()["new"] == 2


async def test_a_host_that_does_not_fit_gets_nothing(small: World) -> None:
    small.add("h1", serves=1)
    await small.rollouts.deploy(pb.DeployRequest(model=MODEL, version=2, target=pb.Target(sites=["a"])))
    await small.settle()
    small.add("elsewhere", site="b")
    await small.settle()
    assert small.active()["elsewhere"] == 0


# ---- waves


async def test_waves_follow_one_another_after_the_pause(small: World) -> None:
    small.add(*MANY, serves=1)
    made = await small.deploy(2, wave_percents=[5, 50, 100], pause={"seconds": 60})
    await small.settle()
    assert ((await small.get(made)).wave, list(small.active().values()).count(2)) == (1, 1)
    await small.wait(59)
    assert (await small.get(made)).wave == 1
    await small.wait(1)
    await small.settle()
    assert ((await small.get(made)).wave, list(small.active().values()).count(2)) == (2, 10)
    await small.wait(60)
    await small.settle()
    assert await small.state(made) == "DONE"


async def test_a_wave_with_too_many_failed_hosts_goes_back_with_all_before_it(fleet: World) -> None:
    fleet.add(*MANY, serves=1)
    for node in MANY[10:13]:
        fleet.nodes.heads[node].refuses[2] = "SIGNATURE_MISSING"
    made = await fleet.deploy(2, wave_percents=[50, 100], max_failed_share=0.2)
    await fleet.settle()
    found = await fleet.get(made)
    assert await fleet.state(made) == "ROLLED_BACK"
    assert set(fleet.active().values()) == {1}
    assert "3 of 10 hosts of wave 2 failed" in found.message
    assert "SIGNATURE_MISSING" in found.message
    assert found.counts.rolled_back == 20


async def test_a_wave_with_few_enough_failed_hosts_goes_on_and_says_which(small: World) -> None:
    small.add(*MANY, serves=1)
    small.nodes.heads["h00"].refuses[2] = "HOST_TOO_SMALL"
    made = await small.deploy(2, max_failed_share=0.05)
    await small.settle()
    assert await small.state(made) == "DONE"
    state = (await small.hosts(made))["h00"].state
    assert (state.reason, state.message) == ("HOST_TOO_SMALL", "says HOST_TOO_SMALL")
    small.nodes.heads["h00"].refuses.clear()
    small.nodes.heads["h00"].take(small.nodes.heads["h00"].ordered[-1])
    small.say("h00")
    await small.turn()
    assert (await small.get(made)).counts.failed == 0


async def test_a_host_that_does_nothing_has_failed_after_its_time_also_while_it_is_away(small: World) -> None:
    small.add("h1", "h2", serves=1)
    small.nodes.heads["h2"].is_slow = True
    made = await small.deploy(2, host_timeout={"seconds": 30}, max_failed_share=0.5)
    await small.settle()
    small.offline("h2")
    await small.wait(29)
    found = await small.get(made)
    assert (await small.state(made), found.counts.failed) == ("ROLLING", 0)
    await small.wait(1)
    assert await small.state(made) == "DONE"
    assert (await small.hosts(made))["h2"].state.reason == "DEADLINE_EXPIRED"
    assert (await small.get(made)).message == "1 of 2 hosts serve version 2"
    small.nodes.heads["h2"].is_slow = False
    small.online("h2")
    await small.settle()
    assert (await small.get(made)).message == "2 of 2 hosts serve version 2"


async def test_a_host_that_comes_and_goes_has_failed_after_its_time(small: World) -> None:
    small.add("h1", "h2", serves=1)
    small.nodes.heads["h2"].is_slow = True
    made = await small.deploy(2, host_timeout={"seconds": 30})
    await small.settle()
    for _ in range(3):
        small.offline("h2")
        await small.wait(10)
        small.online("h2")
        await small.turn()
    await small.settle()
    assert "h2: it does not serve the version after 30 s" in (await small.get(made)).message
    assert small.active() == {"h1": 1, "h2": 1}


async def test_a_version_that_takes_its_hosts_down_reaches_no_second_wave(fleet: World) -> None:
    fleet.add(*MANY, serves=1)
    made = await fleet.deploy(2, wave_percents=[5, 25, 100], host_timeout={"seconds": 30})
    for _ in range(10):
        await fleet.turn()
        fleet.offline(*{task.node for task in fleet.tasks.table.values()} & fleet.nodes.online)
        await fleet.turn()
    assert (await fleet.state(made), (await fleet.get(made)).wave) == ("ROLLING", 1)
    await fleet.wait(30)
    assert await fleet.state(made) == "ROLLED_BACK"
    assert len(fleet.nodes.online) == len(MANY) - 1


async def test_a_wave_waits_for_hosts_while_none_of_it_serves(small: World) -> None:
    small.add(*MANY, serves=1)
    small.registry.aliases["production"] = 1
    made = await small.deploy(2, wave_percents=[10, 50, 100], alias="production")
    await small.turn()
    small.deliver("h00", "h01")
    small.offline(*MANY[2:])
    await small.wait(1_000)
    await small.rollouts.tidy()
    found = await small.get(made)
    assert (await small.state(made), found.wave, "waits for hosts" in found.message) == ("ROLLING", 2, True)
    assert small.registry.aliases["production"] == 1
    small.online(*MANY[2:])
    await small.turn()
    assert "waits for hosts" not in (await small.get(made)).message
    await small.settle()
    assert await small.state(made) == "DONE"


async def test_a_deployment_of_which_no_host_serves_is_never_done(small: World) -> None:
    small.add("h1", serves=1, online=False)
    made = await small.deploy(2)
    await small.settle()
    assert (await small.state(made), (await small.get(made)).counts.offline) == ("ROLLING", 1)
    small.nodes.heads["h1"].refuses[2] = "MODEL_CORRUPT"
    small.online("h1")
    await small.settle()
    assert await small.state(made) == "ROLLED_BACK"


@pytest.mark.parametrize("reason", ["SERVICE_UNAVAILABLE", "DEADLINE_EXPIRED", "STORAGE_FULL"])
@pytest.mark.parametrize("gate", [False, True])
async def test_a_failure_that_may_pass_is_waited_for(small: World, reason: str, gate: bool) -> None:
    small.add("h1", "h2", serves=1)
    head = small.nodes.heads["h1"]
    head.refuses[2] = reason
    made = await small.deploy(2, **({"gate": GATE} if gate else {}))
    await small.turn()
    order = small.tasks.open("h1")[0].deploy.assignment
    head.take(order)
    small.say("h1")
    await small.turn()
    assert await small.state(made) == ("SHADOW" if gate else "ROLLING")
    assert (await small.get(made)).counts.failed == 0
    head.refuses.clear()
    await small.settle()
    assert await small.state(made) == ("SHADOW" if gate else "DONE")


async def test_a_task_that_was_cancelled_fails_no_host_before_its_time(small: World) -> None:
    small.add("h1", "h2", serves=1)
    made = await small.deploy(2, host_timeout={"seconds": 30})
    await small.turn()
    small.tasks.end(small.tasks.open("h1")[0].id, pb.TASK_STATE_CANCELLED)
    await small.settle()
    assert (await small.state(made), (await small.get(made)).counts.failed) == ("ROLLING", 0)
    await small.wait(30)
    assert await small.state(made) == "ROLLING_BACK"


async def test_a_restart_in_the_middle_ends_no_wave_and_moves_no_alias(fleet: World) -> None:
    fleet.add(*MANY, serves=1)
    fleet.registry.aliases["production"] = 1
    strategy = {"wave_percents": [5, 25, 100], "alias": "production", "host_timeout": {"seconds": 600}}
    made = await fleet.deploy(2, **strategy)
    await fleet.turn()
    await fleet.restart(back=False)
    for _ in range(5):
        await fleet.wait(GRACE_S)
        await fleet.rollouts.tidy()
    assert (await fleet.state(made), (await fleet.get(made)).wave) == ("ROLLING", 1)
    assert fleet.registry.aliases["production"] == 1
    for node in MANY:
        fleet.nodes.heads[node].refuses[2] = "MODEL_INCOMPATIBLE"
    fleet.online(*MANY)
    await fleet.settle()
    assert await fleet.state(made) == "ROLLED_BACK"
    assert [node for node in MANY if any(one.version == 2 for one in fleet.nodes.heads[node].ordered)] == ["h00"]


async def test_time_while_the_service_was_down_fails_no_host(small: World) -> None:
    small.add("h1", serves=1)
    made = await small.deploy(2, host_timeout={"seconds": 30})
    await small.turn()
    small.now_us += 3_600_000_000
    await small.restart()
    await small.wait(29)
    assert (await small.state(made), (await small.get(made)).counts.failed) == ("ROLLING", 0)
    await small.wait(1)
    assert await small.state(made) == "ROLLING_BACK"


async def test_a_failed_share_is_not_taken_of_the_few_that_came_back_first(small: World) -> None:
    small.add(*MANY, serves=1)
    small.nodes.heads["h00"].refuses[2] = "HOST_TOO_SMALL"
    made = await small.deploy(2, max_failed_share=0.1, max_parallel=1)
    await small.turn()
    small.deliver("h00")
    await small.turn()
    assert (await small.get(made)).counts.failed == 1
    await small.restart(back=False)
    await small.turn()
    assert await small.state(made) == "ROLLING"
    small.online(*MANY)
    await small.settle()
    await small.wait(GRACE_S)
    await small.settle()
    assert (await small.state(made), (await small.get(made)).counts.serving) == ("DONE", 19)


async def test_a_task_that_fails_for_good_is_a_failed_host(small: World) -> None:
    small.add("h1", serves=1)
    made = await small.deploy(2)
    await small.turn()
    small.tasks.end("t1", pb.TASK_STATE_FAILED, "STORAGE_FULL", "the disk is full")
    await small.settle()
    assert await small.state(made) == "ROLLED_BACK"
    assert "the disk is full" in (await small.get(made)).message


async def test_a_paused_deployment_begins_nothing_until_it_is_resumed(small: World) -> None:
    small.add(*MANY, serves=1)
    made = await small.deploy(2, wave_percents=[10, 100])
    await small.turn()
    paused = await small.rollouts.pause(pb.PauseDeploymentRequest(id=made, reason="lunch"))
    assert (paused.deployment.message, paused.deployment.resumes) == ("lunch", pb.DEPLOYMENT_STATE_ROLLING)
    await small.settle()
    assert list(small.active().values()).count(2) == 2  # what was under way has ended
    assert await small.state(made) == "PAUSED"
    await small.rollouts.resume(pb.ResumeDeploymentRequest(id=made))
    await small.settle()
    assert await small.state(made) == "DONE"
    await refused(small.rollouts.pause(pb.PauseDeploymentRequest(id=made)), Reason.DEPLOYMENT_ENDED)


# ---- trials


async def test_a_candidate_is_tried_in_the_shadow_then_by_a_canary_then_rolled_out(fleet: World) -> None:
    fleet.add(*MANY, serves=1)
    made = await fleet.deploy(2, wave_percents=[10, 100], gate=GATE)
    await fleet.settle()
    trial = fleet.nodes.heads["h00"].ordered[-1].trial
    assert (trial.candidate, trial.answer_share) == (2, 0.0)
    assert set(fleet.active().values()) == {1}
    assert not fleet.nodes.heads["h02"].ordered
    fleet.count("h00", both_right=30)
    fleet.count("h01", both_right=25)
    await fleet.settle()
    assert await fleet.state(made) == "CANARY"
    trial = fleet.nodes.heads["h01"].ordered[-1].trial
    assert trial.answer_share == pytest.approx(0.1)
    fleet.count("h00", both_right=400)
    await fleet.settle()
    found = await fleet.get(made)
    assert await fleet.state(made) == "DONE"
    assert set(fleet.active().values()) == {2}
    assert found.evidence.pairs == 455
    assert found.evidence.not_worse >= found.evidence.needed == pytest.approx(20)


async def test_a_candidate_that_is_worse_goes_back_by_itself(fleet: World) -> None:
    fleet.add(*MANY, serves=1)
    made = await fleet.deploy(2, wave_percents=[10, 100], gate=GATE)
    await fleet.settle()
    fleet.count("h00", both_right=20, only_serving_right=12)
    await fleet.settle()
    assert await fleet.state(made) == "ROLLED_BACK"
    assert "version 2 is worse" in (await fleet.get(made)).message
    head = fleet.nodes.heads["h00"]
    assert (head.state.generation, head.state.active_version) == (0, 1)  # it follows its alias again


async def test_a_candidate_that_one_host_cannot_load_goes_back_everywhere(small: World) -> None:
    small.add(*MANY, serves=1)
    small.nodes.heads["h01"].refuses[2] = "MODEL_CORRUPT"
    made = await small.deploy(2, wave_percents=[10, 100], gate=GATE)
    await small.settle()
    assert await small.state(made) == "ROLLED_BACK"
    assert "h01 cannot use version 2" in (await small.get(made)).message


async def test_pairs_count_once_however_often_they_are_told(fleet: World) -> None:
    fleet.add("h1", serves=1)
    made = await fleet.deploy(2, gate=GATE)
    await fleet.settle()
    for _ in range(3):
        fleet.count("h1", both_right=20)
        await fleet.turn()
        await fleet.restart()
        await fleet.settle()
    fleet.count("h1", "boot-2", both_right=10)  # the head began anew
    await fleet.turn()
    assert (await fleet.get(made)).evidence.pairs == 30


async def test_counts_that_go_down_or_belong_to_another_trial_are_not_counted(small: World) -> None:
    small.add("h1", serves=1)
    made = await small.deploy(2, gate=GATE)
    await small.settle()
    small.count("h1", both_right=20)
    await small.turn()
    small.count("h1", both_right=19, only_serving_right=1000)
    await small.turn()
    assert (await small.get(made)).evidence.pairs == 20
    assert "went down" in (await small.hosts(made))["h1"].state.message
    small.nodes.heads["h1"].state.counts.trial_id = "another"
    small.count("h1", only_serving_right=1000)
    await small.turn()
    assert (await small.get(made)).evidence.pairs == 20


async def test_a_trial_that_shows_nothing_pauses_and_a_person_may_promote_it(small: World) -> None:
    small.add(*MANY, serves=1)
    made = await small.deploy(2, wave_percents=[10, 100], gate=pb.Gate(shadow_pairs=50, max_pairs=200))
    await small.settle()
    small.count("h00", both_right=30, only_serving_right=10, only_candidate_right=10)
    await small.settle()
    small.count("h00", both_right=110, only_serving_right=20, only_candidate_right=20)
    await small.settle()
    found = await small.get(made)
    assert (await small.state(made), found.resumes) == ("PAUSED", pb.DEPLOYMENT_STATE_CANARY)
    assert "200 pairs have shown neither" in found.message
    await small.rollouts.resume(pb.ResumeDeploymentRequest(id=made))
    await small.settle()
    assert await small.state(made) == "CANARY"
    await small.rollouts.resume(pb.ResumeDeploymentRequest(id=made, promote=True))
    await small.settle()
    assert await small.state(made) == "DONE"
    assert set(small.active().values()) == {2}


async def test_a_trial_that_takes_too_long_pauses(small: World) -> None:
    small.add("h1", serves=1)
    gate = pb.Gate(max_time={"seconds": 3600})  # type: ignore[arg-type]
    made = await small.deploy(2, gate=gate)
    await small.settle()
    await small.wait(3600)
    assert await small.state(made) == "PAUSED"
    assert "no pair was made yet" in (await small.get(made)).message


async def test_without_a_version_to_compare_with_a_trial_is_refused(small: World) -> None:
    small.add("h1")
    error = await refused(small.deploy(2, gate=GATE), Reason.FIELD_INVALID)
    assert "no host of the first wave" in error.message


# ---- back


async def test_a_rollback_brings_every_host_to_what_it_had_in_one_step(fleet: World) -> None:
    fleet.add("followed", serves=1)
    fleet.add("bare")
    first = await fleet.deploy(2)
    await fleet.settle()
    second = await fleet.deploy(3)
    await fleet.settle()
    assert await fleet.state(first) == "SUPERSEDED"
    assert (await fleet.rollback(model=MODEL)).id == second
    await fleet.settle()
    assert await fleet.state(second) == "ROLLED_BACK"
    assert fleet.active() == {"followed": 2, "bare": 2}
    assert await fleet.state(first) == "DONE"
    assert (await fleet.rollback(model=MODEL)).id == second  # again: nothing
    await fleet.settle()
    assert fleet.active() == {"followed": 2, "bare": 2}
    await fleet.rollback(first)  # what was before that
    await fleet.settle()
    assert fleet.active() == {"followed": 1, "bare": 0}


async def test_a_superseded_deployment_is_not_rolled_back_over_the_later_one(small: World) -> None:
    small.add("h1", serves=1)
    first = await small.deploy(2)
    await small.settle()
    second = await small.deploy(3)
    await small.settle()
    error = await refused(small.rollback(first), Reason.DEPLOYMENT_ACTIVE)
    assert error.metadata["deployment"] == second


async def test_hosts_that_are_away_at_a_rollback_go_back_when_they_come(fleet: World) -> None:
    fleet.add("h1", "h2", serves=1)
    made = await fleet.deploy(2)
    await fleet.settle()
    fleet.offline("h2")
    await fleet.rollback(made)
    await fleet.settle()
    found = await fleet.get(made)
    assert (await fleet.state(made), found.counts.offline) == ("ROLLED_BACK", 1)
    assert fleet.active() == {"h1": 1, "h2": 2}
    fleet.online("h2")
    await fleet.settle()
    assert fleet.active() == {"h1": 1, "h2": 1}
    assert (await fleet.get(made)).counts.rolled_back == 2


async def test_a_host_that_does_not_come_back_is_told_of_and_holds_up_nothing_for_ever(small: World) -> None:
    small.add("h1", "h2", serves=1)
    made = await small.deploy(2)
    await small.settle()
    small.nodes.heads["h2"].is_slow = True
    await small.rollback(made)
    await small.settle()
    assert await small.state(made) == "ROLLING_BACK"
    await small.wait(600)
    assert await small.state(made) == "ROLLED_BACK"
    assert "1 have not gone back" in (await small.get(made)).message


# ---- aliases and holds


async def test_the_alias_follows_a_deployment_that_is_done_and_goes_back_with_it(fleet: World) -> None:
    fleet.add("h1", serves=1)
    fleet.registry.aliases["production"] = 1
    made = await fleet.deploy(2, alias="production")
    await fleet.rollouts.tidy()
    assert fleet.registry.aliases["production"] == 1
    await fleet.settle()
    await fleet.rollouts.tidy()
    assert fleet.registry.aliases["production"] == 2
    fleet.nodes.heads["h1"].alias_version = 2
    await fleet.rollback(made)
    await fleet.settle()
    await fleet.rollouts.tidy()
    assert fleet.registry.aliases["production"] == 1
    assert fleet.active() == {"h1": 1}  # pinned: the alias pointed at the version when it was told to go back


async def test_an_alias_that_cannot_be_moved_is_told_of_and_moved_later(small: World) -> None:
    small.add("h1", serves=1)
    made = await small.deploy(2, alias="production")
    await small.settle()
    small.registry.problem = MeshError(Reason.SERVICE_UNAVAILABLE, "down for an hour")
    await refused(small.rollouts.tidy(), Reason.SERVICE_UNAVAILABLE)
    assert "'production' could not be moved yet" in (await small.get(made)).message
    small.registry.problem = None
    await small.rollouts.tidy()
    assert small.registry.aliases["production"] == 2
    assert "could not" not in (await small.get(made)).message


async def test_versions_are_held_while_hosts_have_them_or_had_them_before(fleet: World) -> None:
    fleet.add("h1", serves=1)
    held = []
    for version in (2, 3, 4):
        await fleet.deploy(version)
        await fleet.settle()
        await fleet.rollouts.tidy()
        held.append({number for _, number in fleet.registry.held})
    assert held == [{1, 2}, {2, 3}, {3, 4}]


async def test_a_hold_that_failed_is_asked_for_again_after_a_restart(small: World) -> None:
    small.add("h1", serves=1)
    await small.deploy(2)
    await small.settle()
    small.registry.held.clear()
    await small.restart()
    await small.rollouts.tidy()
    assert small.registry.held == {(MODEL, 1), (MODEL, 2)}


# ---- refusals


async def test_what_cannot_be_deployed_is_refused_with_the_reason(small: World) -> None:
    await refused(small.deploy(2), Reason.NODE_NOT_FOUND)
    small.add("h1", serves=1)
    await refused(small.deploy(99), Reason.VERSION_NOT_FOUND)
    await refused(small.deploy(0), Reason.FIELD_INVALID)
    await refused(
        small.rollouts.deploy(pb.DeployRequest(model=MODEL, version=2, target=pb.Target())), Reason.FIELD_INVALID
    )
    await refused(small.deploy(2, wave_percents=[50, 20]), Reason.FIELD_INVALID)
    await refused(small.deploy(2, max_failed_share=1.5), Reason.FIELD_INVALID)
    await refused(small.deploy(2, gate=pb.Gate(margin=2)), Reason.FIELD_INVALID)
    await refused(small.rollback(model="never"), Reason.MODEL_NOT_FOUND)
    await refused(small.rollback("nothing"), Reason.DEPLOYMENT_NOT_FOUND)
    small.registry.problem = MeshError(Reason.DEADLINE_EXPIRED, "slow")
    await refused(small.deploy(2), Reason.SERVICE_UNAVAILABLE)


async def test_a_second_deployment_of_the_model_waits_for_the_first_where_they_share_a_host(small: World) -> None:
    small.add("h1", "h2", serves=1)
    first = await small.deploy(2, nodes=["h1"])
    error = await refused(small.deploy(3), Reason.DEPLOYMENT_ACTIVE)
    assert error.metadata["deployment"] == first
    await small.deploy(3, nodes=["h2"])
    await small.settle()
    assert small.active() == {"h1": 2, "h2": 3}


async def test_one_request_id_makes_one_deployment(fleet: World) -> None:
    fleet.add("h1", serves=1)
    request = pb.DeployRequest(model=MODEL, version=2, target=pb.Target(all=True), request_id="r1")
    first = await fleet.rollouts.deploy(request)
    await fleet.settle()
    assert (await fleet.rollouts.deploy(request)).deployment.id == first.deployment.id
    assert len((await fleet.rollouts.list(pb.ListDeploymentsRequest())).deployments) == 1


# ---- faults


async def test_a_turn_that_cannot_be_written_is_taken_again(fleet: World) -> None:
    fleet.add("h1", serves=1)
    fleet.tasks.full = True
    made = await fleet.deploy(2)
    await refused(fleet.turn(), Reason.QUEUE_FULL)
    fleet.tasks.full = False
    await fleet.settle()
    assert await fleet.state(made) == "DONE"
    assert [order.generation for order in fleet.nodes.heads["h1"].ordered] == [1]


async def test_what_was_heard_in_a_turn_that_failed_is_not_lost(small: World) -> None:
    small.add("h1", "h2", serves=1)
    made = await small.deploy(2, gate=GATE, wave_percents=[50, 100])
    await small.settle()
    small.count("h1", both_right=60)  # the canary needs a task, which there is no room for
    small.tasks.full = True
    await refused(small.turn(), Reason.QUEUE_FULL)
    small.tasks.full = False
    await small.settle()
    assert (await small.state(made), (await small.get(made)).evidence.pairs) == ("CANARY", 60)


async def test_a_host_that_lost_its_assignment_is_told_again_when_it_comes(fleet: World) -> None:
    fleet.add("h1", serves=1)
    await fleet.deploy(2)
    await fleet.settle()
    fleet.offline("h1")
    fleet.add("h1", serves=1)  # set up anew
    await fleet.settle()
    assert fleet.active() == {"h1": 2}


async def test_a_fleet_that_was_set_back_to_a_backup_goes_above_what_hosts_have(small: World) -> None:
    small.add("h1", serves=1)
    await small.deploy(2)
    await small.settle()
    head = small.nodes.heads["h1"]
    head.state.generation, head.state.active_version = 41, 7
    small.offline("h1")
    small.online("h1")
    await small.settle()
    assert (head.state.generation, head.state.active_version) == (42, 2)


async def test_a_removed_host_is_gone_from_deployments(fleet: World) -> None:
    fleet.add("h1", "h2", serves=1)
    made = await fleet.deploy(2)
    await fleet.settle()
    fleet.offline("h2")
    del fleet.nodes.known["h2"]
    await fleet.database.write(lambda connection: fleet.rollouts.forget_node(connection, "h2"))
    fleet.rollouts.node_removed("h2")
    await fleet.settle()
    assert list(await fleet.hosts(made)) == ["h1"]
    await fleet.restart()
    assert list(await fleet.hosts(made)) == ["h1"]


@pytest.mark.parametrize("before", ["SHADOW", "CANARY", "ROLLING", "PAUSED", "ROLLING_BACK", "DONE", "ROLLED_BACK"])
async def test_a_restart_changes_nothing_wherever_a_deployment_stands(fleet: World, before: str) -> None:
    fleet.add(*MANY[:4], serves=1)
    gate = {"gate": GATE} if before in ("SHADOW", "CANARY") else {}
    made = await fleet.deploy(2, wave_percents=[25, 100], pause={"seconds": 60}, **gate)
    await fleet.settle()
    if before == "CANARY":
        fleet.count("h00", both_right=60)
        await fleet.settle()
    if before == "PAUSED":
        await fleet.rollouts.pause(pb.PauseDeploymentRequest(id=made))
    if before == "DONE":
        await fleet.wait(60)
        await fleet.settle()
    if before in ("ROLLING_BACK", "ROLLED_BACK"):
        await fleet.rollback(made)
    if before == "ROLLED_BACK":
        await fleet.settle()
    assert await fleet.state(made) == before
    stood, ordered = await fleet.get(made), [list(head.ordered) for head in fleet.nodes.heads.values()]
    if before == "ROLLING_BACK":
        await fleet.restart()
    else:
        await fleet.restart()
        await fleet.settle()
        await fleet.wait(GRACE_S)
        await fleet.settle()
        found = await fleet.get(made)
        assert (found.state, found.wave, found.evidence) == (stood.state, stood.wave, stood.evidence)
        assert [list(head.ordered) for head in fleet.nodes.heads.values()] == ordered
        if before == "PAUSED":
            await fleet.rollouts.resume(pb.ResumeDeploymentRequest(id=made))
        if before in ("SHADOW", "CANARY"):
            fleet.count("h00", both_right=60)
            await fleet.settle()
            fleet.count("h00", both_right=600)
            await fleet.settle()
    await fleet.wait(60)
    await fleet.settle()
    back = before in ("ROLLING_BACK", "ROLLED_BACK")
    assert await fleet.state(made) == ("ROLLED_BACK" if back else "DONE")
    assert set(fleet.active().values()) == {1 if back else 2}
