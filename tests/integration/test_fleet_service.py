"""The fleet's streams, hosts and tasks over real connections."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from splitmesh.api.fleet.v1 import fleet_pb2 as pb
from splitmesh.api.serving.v1 import serving_pb2
from splitmesh.errors import MeshError, Reason
from tests.support.fake_agent import fleet_at, hello

RUNNING, DONE, FAILED = pb.TASK_STATE_RUNNING, pb.TASK_STATE_DONE, pb.TASK_STATE_FAILED
QUEUED, OFFERED, CANCELLED = pb.TASK_STATE_QUEUED, pb.TASK_STATE_OFFERED, pb.TASK_STATE_CANCELLED


async def test_a_task_goes_to_its_host_and_its_result_comes_back(tmp_path: Path) -> None:
    async with fleet_at(tmp_path) as fleet:
        agent = await fleet.connect()
        made = await fleet.submit(created_by="anna")
        task = await agent.expect("offer")
        assert (task.id, task.attempt, task.state, task.profile.model) == (made.id, 1, OFFERED, "m")
        await agent.update(task, RUNNING, progress=pb.TaskProgress(phase="timing", share=0.5))
        seen = await fleet.until_task(task.id, lambda one: one.progress.share == 0.5)
        assert (seen.state, seen.node) == (RUNNING, "edge-1")
        await agent.finish(task, result={"profile": "p"})
        ended = await fleet.task(task.id)
        assert (ended.state, dict(ended.result), ended.created_by) == (DONE, {"profile": "p"}, "anna")


async def test_an_end_that_is_told_twice_is_acknowledged_twice_and_counts_once(tmp_path: Path) -> None:
    async with fleet_at(tmp_path) as fleet:
        agent = await fleet.connect()
        await fleet.submit()
        task = await agent.expect("offer")
        await agent.finish(task, result={"a": "1"})
        await agent.finish(task, FAILED, message="no")
        ended = await fleet.task(task.id)
        assert (ended.state, dict(ended.result)) == (DONE, {"a": "1"})


async def test_a_task_waits_for_its_host_and_says_why(tmp_path: Path) -> None:
    async with fleet_at(tmp_path) as fleet:
        made = await fleet.submit()
        await fleet.until_task(made.id, lambda one: "not connected" in one.message)
        agent = await fleet.connect()
        assert (await agent.expect("offer")).id == made.id


async def test_what_runs_goes_on_over_a_broken_link_under_the_same_try(tmp_path: Path) -> None:
    async with fleet_at(tmp_path) as fleet:
        agent = await fleet.connect()
        await fleet.submit()
        task = await agent.expect("offer")
        await agent.update(task, RUNNING)
        await fleet.until_task(task.id, lambda one: one.state == RUNNING)
        agent.drop()
        held = [pb.HeldTask(task_id=task.id, attempt=1)]
        again = await fleet.connect(held=held)
        assert await again.quiet() == []
        await again.finish(task)
        assert (await fleet.task(task.id)).state == DONE


async def test_an_offer_that_was_lost_with_the_link_comes_again_with_the_same_try(tmp_path: Path) -> None:
    async with fleet_at(tmp_path) as fleet:
        agent = await fleet.connect()
        made = await fleet.submit()
        await agent.expect("offer")
        agent.drop()
        task = await (await fleet.connect()).expect("offer")
        assert (task.id, task.attempt) == (made.id, 1)


async def test_what_an_agent_forgot_is_another_try_and_after_the_last_one_has_failed(tmp_path: Path) -> None:
    async with fleet_at(tmp_path) as fleet:
        made = await fleet.submit(max_attempts=2)
        for attempt in (1, 2):
            agent = await fleet.connect(boot_id=f"boot-{attempt}")
            task = await agent.expect("offer")
            assert task.attempt == attempt
            await agent.update(task, RUNNING)
            await fleet.until_task(made.id, lambda one: one.state == RUNNING)
            agent.drop()
        await fleet.connect(boot_id="boot-3")
        ended = await fleet.until_task(made.id, lambda one: one.state == FAILED)
        assert "2 tries" in ended.message


async def test_a_lease_that_runs_out_is_another_try_and_the_old_one_is_not_heard(tmp_path: Path) -> None:
    async with fleet_at(tmp_path, lease_s=0.6) as fleet:
        agent = await fleet.connect()
        await fleet.submit()
        first = await agent.expect("offer")
        second = await agent.expect("offer")
        assert (second.id, second.attempt) == (first.id, 2)
        await agent.finish(first, FAILED)
        assert (await fleet.task(first.id)).state in (OFFERED, QUEUED)
        while (last := await agent.expect("offer")).attempt < 2:
            pass
        await agent.finish(last)
        assert (await fleet.task(first.id)).state in (DONE, FAILED)


async def test_a_task_for_any_host_leaves_one_that_died_for_another(tmp_path: Path) -> None:
    async with fleet_at(tmp_path, lease_s=0.6) as fleet:
        one = await fleet.connect("edge-1")
        made = await fleet.submit(target=pb.Target(sites=["hamburg"]))
        assert (await one.expect("offer")).id == made.id
        two = await fleet.connect("edge-2")
        one.drop()
        task = await two.expect("offer")
        assert (task.id, task.node) == (made.id, "edge-2")
        assert task.attempt >= 2


async def test_tasks_for_any_host_go_to_the_one_that_has_the_fewest(tmp_path: Path) -> None:
    async with fleet_at(tmp_path) as fleet:
        agents = {name: await fleet.connect(name, max_tasks=2) for name in ("a", "b")}
        elsewhere = await fleet.connect("c", site="berlin")
        for _ in range(5):
            await fleet.submit(target=pb.Target(sites=["hamburg"]))
        for agent in agents.values():
            for _ in range(2):
                await agent.expect("offer")
        found = await fleet.call("ListTasks", pb.ListTasksRequest(states=[QUEUED]))
        (waiting,) = found.tasks
        await fleet.until_task(waiting.id, lambda one: "busy" in one.message)
        assert await elsewhere.quiet() == []


async def test_a_kind_that_a_host_does_not_take_waits_with_the_reason(tmp_path: Path) -> None:
    async with fleet_at(tmp_path) as fleet:
        agent = await fleet.connect(capabilities=pb.Capabilities(task_kinds=[pb.TASK_KIND_DEPLOY]))
        made = await fleet.submit()
        await fleet.until_task(made.id, lambda one: "does not take" in one.message)
        await agent.say(capabilities=pb.Capabilities(task_kinds=[pb.TASK_KIND_PROFILE]))
        assert (await agent.expect("offer")).id == made.id


@pytest.mark.parametrize("begun", [False, True])
async def test_a_cancelled_task_is_stopped_and_its_end_is_acknowledged(tmp_path: Path, begun: bool) -> None:
    async with fleet_at(tmp_path) as fleet:
        agent = await fleet.connect()
        await fleet.submit()
        task = await agent.expect("offer")
        if begun:
            await agent.update(task, RUNNING)
            await fleet.until_task(task.id, lambda one: one.state == RUNNING)
        assert (await fleet.call("CancelTask", pb.CancelTaskRequest(task_id=task.id))).task.state == CANCELLED
        stop = await agent.expect("cancel")
        assert (stop.task_id, stop.attempt) == (task.id, 1)
        await agent.finish(task, DONE)
        assert (await fleet.task(task.id)).state == CANCELLED
        await fleet.call("CancelTask", pb.CancelTaskRequest(task_id=task.id))


async def test_what_was_cancelled_while_the_host_was_away_is_stopped_when_it_comes_back(tmp_path: Path) -> None:
    async with fleet_at(tmp_path) as fleet:
        agent = await fleet.connect()
        await fleet.submit()
        task = await agent.expect("offer")
        agent.drop()
        await fleet.until_node(lambda node: node.state == pb.NODE_STATE_OFFLINE)
        await fleet.call("CancelTask", pb.CancelTaskRequest(task_id=task.id))
        again = await fleet.connect(held=[pb.HeldTask(task_id=task.id, attempt=1)])
        assert (await again.expect("cancel")).task_id == task.id


async def test_a_failure_that_may_pass_is_tried_again_after_a_rest(tmp_path: Path) -> None:
    async with fleet_at(tmp_path) as fleet:
        agent = await fleet.connect()
        await fleet.submit(max_attempts=2)
        task = await agent.expect("offer")
        await agent.finish(task, FAILED, reason="QUEUE_FULL", message="later", retry=True)
        assert (await fleet.task(task.id)).state == QUEUED
        again = await agent.expect("offer")
        assert again.attempt == 2
        await agent.finish(again, FAILED, reason="QUEUE_FULL", message="later", retry=True)
        ended = await fleet.task(task.id)
        assert (ended.state, ended.reason) == (FAILED, "QUEUE_FULL")


@pytest.mark.parametrize("stage", ["queued", "offered", "running", "done"])
async def test_tasks_outlive_the_fleet(tmp_path: Path, stage: str) -> None:
    async with fleet_at(tmp_path) as fleet:
        agent = await fleet.connect() if stage != "queued" else None
        made = await fleet.submit()
        if agent is not None:
            task = await agent.expect("offer")
            if stage == "running":
                await agent.update(task, RUNNING)
                await fleet.until_task(made.id, lambda one: one.state == RUNNING)
            elif stage == "done":
                await agent.finish(task)
    async with fleet_at(tmp_path) as fleet:
        held = [pb.HeldTask(task_id=made.id, attempt=1)] if stage in ("running", "done") else []
        agent = await fleet.connect(held=held)
        if stage in ("queued", "offered"):
            assert (await agent.expect("offer")).attempt == 1
        elif stage == "running":
            assert await agent.quiet() == []
            assert (await fleet.task(made.id)).state == RUNNING
        else:
            assert await agent.quiet() == ["cancel"]
            assert (await fleet.task(made.id)).state == DONE
        assert (await fleet.node()).site == "hamburg"


async def test_one_request_makes_one_task(tmp_path: Path) -> None:
    async with fleet_at(tmp_path) as fleet:
        made = [await fleet.submit(request_id="r") for _ in range(2)]
        assert made[0].id == made[1].id
        assert len((await fleet.call("ListTasks", pb.ListTasksRequest())).tasks) == 1


async def test_no_more_tasks_wait_than_may(tmp_path: Path) -> None:
    async with fleet_at(tmp_path, max_tasks_waiting=2) as fleet:
        for _ in range(2):
            await fleet.submit()
        with pytest.raises(MeshError) as caught:
            await fleet.submit()
        assert caught.value.reason is Reason.QUEUE_FULL


async def test_tasks_are_listed_newest_first_in_pages(tmp_path: Path) -> None:
    async with fleet_at(tmp_path) as fleet:
        made = [(await fleet.submit(node)).id for node in ("a", "b", "a", "a")]
        found, token = [], ""
        while True:
            some = await fleet.call("ListTasks", pb.ListTasksRequest(page_size=2, page_token=token, node="a"))
            found += [one.id for one in some.tasks]
            if not (token := some.next_page_token):
                break
        assert found == [made[3], made[2], made[0]]
        with pytest.raises(MeshError) as caught:
            await fleet.call("ListTasks", pb.ListTasksRequest(page_token="?"))
        assert caught.value.reason is Reason.FIELD_INVALID


async def test_the_newest_of_two_agents_with_one_name_has_the_node_and_a_quarrel_is_seen(tmp_path: Path) -> None:
    async with fleet_at(tmp_path) as fleet:
        first = await fleet.connect(boot_id="one")
        second = await fleet.connect(boot_id="two")
        assert (await first.ended()).reason is Reason.NODE_REPLACED
        assert (await fleet.node()).warning == ""
        await fleet.connect(boot_id="one")
        assert (await second.ended()).reason is Reason.NODE_REPLACED
        assert "two agents use the name edge-1" in (await fleet.node()).warning


async def test_an_agent_that_comes_back_before_its_old_stream_has_ended_is_no_quarrel(tmp_path: Path) -> None:
    async with fleet_at(tmp_path) as fleet:
        for _ in range(3):
            await fleet.connect(boot_id="one")
        assert (await fleet.node()).warning == ""


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"heartbeat": pb.Heartbeat()}, Reason.PROTOCOL_VIOLATION),
        ({}, Reason.PROTOCOL_VIOLATION),
        ({"hello": hello("no name")}, Reason.FIELD_INVALID),
        ({"hello": hello(boot_id="")}, Reason.FIELD_INVALID),
        ({"hello": hello(labels={"a": "x" * 300})}, Reason.FIELD_INVALID),
        ({"hello": hello(labels={f"a{n}": "x" for n in range(65)})}, Reason.FIELD_INVALID),
        ({"hello": hello(site="a\0b")}, Reason.FIELD_INVALID),
        ({"hello": hello(capabilities=pb.Capabilities(os="x" * 100_000))}, Reason.FIELD_INVALID),
        ({"hello": hello(serving=[serving_pb2.ServingState()])}, Reason.FIELD_INVALID),
        ({"hello": hello(max_tasks=10**6)}, Reason.FIELD_INVALID),
    ],
    ids=["heartbeat", "empty", "name", "boot", "label", "labels", "nul", "capabilities", "serving", "max_tasks"],
)
async def test_a_stream_that_does_not_begin_with_a_sound_hello_is_ended(
    tmp_path: Path, said: dict[str, Any], reason: Reason
) -> None:
    async with fleet_at(tmp_path) as fleet:
        agent = fleet.agent()
        await agent.say(**said)
        assert (await agent.ended()).reason is reason
        assert not (await fleet.call("ListNodes", pb.ListNodesRequest())).nodes


async def test_a_second_hello_and_a_state_that_no_host_can_say_end_the_stream(tmp_path: Path) -> None:
    async with fleet_at(tmp_path) as fleet:
        agent = await fleet.connect()
        await agent.say(hello=hello())
        assert (await agent.ended()).reason is Reason.PROTOCOL_VIOLATION
        again = await fleet.connect()
        await again.update(pb.Task(id="t", attempt=1), pb.TASK_STATE_SUPERSEDED)
        assert (await again.ended()).reason is Reason.FIELD_INVALID


async def test_a_host_is_told_to_stop_what_nobody_gave_it(tmp_path: Path) -> None:
    async with fleet_at(tmp_path) as fleet:
        agent = await fleet.connect()
        await agent.update(pb.Task(id="unknown", attempt=7), RUNNING)
        stop = await agent.expect("cancel")
        assert (stop.task_id, stop.attempt) == ("unknown", 7)


async def test_a_result_that_is_too_large_is_left_out_and_the_task_has_ended_all_the_same(tmp_path: Path) -> None:
    async with fleet_at(tmp_path) as fleet:
        agent = await fleet.connect()
        await fleet.submit()
        task = await agent.expect("offer")
        await agent.finish(task, DONE, result={"a": "x" * 100_000}, message="m" * 10_000)
        ended = await fleet.task(task.id)
        assert (ended.state, dict(ended.result)) == (DONE, {})
        assert "was not kept" in ended.message


async def test_silence_ends_a_stream(tmp_path: Path) -> None:
    async with fleet_at(tmp_path, heartbeat_s=0.1, hello_s=0.2) as fleet:
        agent = await fleet.connect()
        assert (await agent.ended()).reason is Reason.DEADLINE_EXPIRED
        await fleet.until_node(lambda node: node.state == pb.NODE_STATE_OFFLINE)
        assert (await fleet.agent().ended()).reason is Reason.DEADLINE_EXPIRED


async def test_agents_that_are_one_too_many_come_back_later(tmp_path: Path) -> None:
    async with fleet_at(tmp_path, max_agents=1) as fleet:
        await fleet.connect("a")
        other = fleet.agent()
        await other.say(hello=hello("b"))
        error = await other.ended()
        assert (error.reason, bool(error.retry_after_s)) == (Reason.QUEUE_FULL, True)
        await fleet.connect("a")


async def test_agents_hear_that_the_fleet_stops(tmp_path: Path) -> None:
    async with fleet_at(tmp_path) as fleet:
        agent = await fleet.connect()
        ended = asyncio.create_task(agent.ended())
        await fleet.host.stop()
        assert (await ended).reason is Reason.NOT_READY


async def test_what_hosts_say_of_themselves_is_shown_and_outlives_the_fleet(tmp_path: Path) -> None:
    state = serving_pb2.ServingState(model="m", active_version=3, node="head-1")
    async with fleet_at(tmp_path) as fleet:
        agent = await fleet.connect(serving=[serving_pb2.ServingState(model="old", node="head-1")])
        await agent.say(heartbeat=pb.Heartbeat(cpu_share=0.5, spooled_records=7))
        await agent.serve([state], gone=["old"])
        await fleet.until_node(lambda node: node.metrics.spooled_records == 7 and list(node.serving) == [state])
    async with fleet_at(tmp_path) as fleet:
        node = await fleet.node()
        assert (node.state, list(node.serving), node.capabilities.cores) == (pb.NODE_STATE_OFFLINE, [state], 4)
        assert node.metrics.spooled_records == 7 or node.seen_time.seconds
        await fleet.connect()
        assert not (await fleet.node()).serving
    async with fleet_at(tmp_path) as fleet:
        assert not (await fleet.node()).serving


async def test_an_operators_labels_stand_before_the_hosts_own_and_place_tasks(tmp_path: Path) -> None:
    async with fleet_at(tmp_path) as fleet:
        agent = await fleet.connect(labels={"gpu": "no", "room": "1"})
        made = await fleet.submit(target=pb.Target(labels={"gpu": "yes"}))
        await fleet.until_task(made.id, lambda one: "no host" in one.message)
        request = pb.SetNodeLabelsRequest(node="edge-1", labels={"gpu": "yes"})
        changed = (await fleet.call("SetNodeLabels", request)).node
        assert dict(changed.labels) == {"gpu": "yes", "room": "1"}
        assert (await agent.expect("offer")).id == made.id
        await fleet.connect(labels={"gpu": "no"}, held=[pb.HeldTask(task_id=made.id, attempt=1)])
        assert dict((await fleet.node()).labels) == {"gpu": "yes"}
        request = pb.SetNodeLabelsRequest(node="edge-1", labels={"gpu": ""})
        assert dict((await fleet.call("SetNodeLabels", request)).node.labels) == {"gpu": "no"}


async def test_a_host_is_removed_when_it_is_offline_with_what_it_alone_might_have(tmp_path: Path) -> None:
    async with fleet_at(tmp_path) as fleet:
        agent = await fleet.connect()
        own = await fleet.submit()
        with pytest.raises(MeshError) as caught:
            await fleet.call("RemoveNode", pb.RemoveNodeRequest(node="edge-1"))
        assert caught.value.reason is Reason.NODE_ONLINE
        agent.drop()
        await fleet.until_node(lambda node: node.state == pb.NODE_STATE_OFFLINE)
        await fleet.call("RemoveNode", pb.RemoveNodeRequest(node="edge-1"))
        with pytest.raises(MeshError) as caught:
            await fleet.node()
        assert caught.value.reason is Reason.NODE_NOT_FOUND
        with pytest.raises(MeshError) as caught:
            await fleet.until_task(own.id, lambda one: True)
        assert caught.value.reason is Reason.TASK_NOT_FOUND
        await fleet.connect()
        assert (await fleet.node()).state == pb.NODE_STATE_ONLINE


async def test_hosts_are_listed_by_name_target_and_state_in_pages(tmp_path: Path) -> None:
    async with fleet_at(tmp_path) as fleet:
        for name, site in (("c", "x"), ("a", "x"), ("b", "y"), ("d", "x")):
            agent = await fleet.connect(name, site=site)
            if name == "d":
                agent.drop()
        await fleet.until_node(lambda node: node.state == pb.NODE_STATE_OFFLINE, "d")

        async def names(**fields: Any) -> list[list[str]]:
            pages, token = [], ""
            while True:
                found = await fleet.call("ListNodes", pb.ListNodesRequest(page_size=2, page_token=token, **fields))
                pages.append([one.node for one in found.nodes])
                if not (token := found.next_page_token):
                    return pages

        assert await names() == [["a", "b"], ["c", "d"]]
        assert await names(target=pb.Target(sites=["x"])) == [["a", "c"], ["d"]]
        assert await names(state=pb.NODE_STATE_OFFLINE) == [["d"]]


async def test_a_host_policy_is_heard_at_once_and_by_those_who_come_later(tmp_path: Path) -> None:
    policy = serving_pb2.HostPolicy(shares=[serving_pb2.HostShare(model="m", priority=5)])
    async with fleet_at(tmp_path) as fleet:
        agent = await fleet.connect()
        await fleet.call("SetHostPolicy", pb.SetHostPolicyRequest(target=pb.Target(all=True), policy=policy))
        told = await agent.expect("policy")
        assert (told.generation, told.shares[0].priority) == (1, 5)
        later = await fleet.connect("edge-2")
        assert (await later.expect("policy")).shares[0].priority == 5
        again = await fleet.connect(policy_generation=1)
        assert await again.quiet() == []
        assert (await fleet.node()).policy.generation == 1
