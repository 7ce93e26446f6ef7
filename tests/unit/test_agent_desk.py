"""The desk alone, with runners that do what a test says: what is begun, told, ended, and never run twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from edge.agent import desk as desk_module
from edge.agent.desk import TaskDesk
from edge.agent.outbox import Outbox
from edge.agent.runners.port import Tell, progress
from edge.agent.store import AgentStore
from splitmesh.api.fleet.v1 import fleet_pb2 as pb
from splitmesh.api.serving.v1 import serving_pb2
from splitmesh.errors import MeshError, Reason
from tests.support.fake_fleet import WAIT_S, deploy_task


class Runner:
    """Runs until it is let go."""

    def __init__(self, *, at_once: bool = True) -> None:
        self.at_once = at_once
        self.begun: list[tuple[str, int]] = []
        self.running: set[str] = set()
        self.most = 0
        self.error: Exception | None = None
        self.go = asyncio.Event()
        self.began = asyncio.Event()
        self.tell: Tell = lambda word: None

    async def run(self, task: pb.Task, tell: Tell) -> Mapping[str, str]:
        self.begun.append((task.id, task.attempt))
        self.running.add(task.id)
        self.most = max(self.most, len(self.running))
        self.tell = tell
        self.began.set()
        try:
            await self.go.wait()
            if self.error is not None:
                raise self.error
            return {"by": f"{task.id}/{task.attempt}"}
        finally:
            self.running.discard(task.id)


class Desk:
    """A desk with its store, and what it has to say."""

    def __init__(self, folder: Path, **options: int) -> None:
        self.now_s = 0.0
        self.deploy, self.profile = Runner(), Runner(at_once=False)
        self.store = AgentStore(folder)
        kinds = {pb.TASK_KIND_DEPLOY: self.deploy, pb.TASK_KIND_PROFILE: self.profile}
        self.outbox = Outbox(lambda task_id: self.desk.update(task_id))
        self.desk = TaskDesk(self.store, kinds, self.outbox.task, monotonic=lambda: self.now_s, **options)

    async def start(self) -> Desk:
        self.store.open()
        await self.desk.start()
        return self

    async def stop(self) -> None:
        await self.desk.stop()
        self.store.close()

    async def said(self) -> pb.TaskUpdate:
        """The next update."""
        async with asyncio.timeout(WAIT_S):
            return (await self.outbox.next()).task

    async def end(self, task_id: str = "t") -> pb.TaskUpdate:
        """The next one that ends the task."""
        while True:
            update = await self.said()
            if update.task_id == task_id and update.state != pb.TASK_STATE_RUNNING:
                return update


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    made = await Desk(tmp_path, max_held=4).start()
    yield made
    await made.stop()


def profile_task(task_id: str) -> pb.Task:
    return pb.Task(id=task_id, kind=pb.TASK_KIND_PROFILE, attempt=1, profile=pb.ProfileWork(model="m", version=1))


async def test_a_task_is_on_disk_before_it_begins(desk: Desk) -> None:
    seen: list[list[str]] = []
    run = desk.deploy.run

    async def looking(task: pb.Task, tell: Tell) -> Mapping[str, str]:
        seen.append([one.task.id for one in desk.store.tasks()])
        return await run(task, tell)

    desk.deploy.run = looking  # type: ignore[method-assign]
    await desk.desk.offered(deploy_task("t"))
    await desk.deploy.began.wait()
    assert seen == [["t"]]


async def test_an_end_is_on_disk_before_it_is_said(desk: Desk) -> None:
    desk.deploy.go.set()
    await desk.desk.offered(deploy_task("t"))
    update = await desk.end()
    assert (update.state, dict(update.result)) == (pb.TASK_STATE_DONE, {"by": "t/1"})
    assert [one.ended for one in desk.store.tasks()] == [update]


async def test_the_same_attempt_is_run_once_however_often_it_is_offered(desk: Desk) -> None:
    for _ in range(3):
        await desk.desk.offered(deploy_task("t"))
    desk.deploy.go.set()
    await desk.end()
    await desk.desk.offered(deploy_task("t"))
    assert (await desk.end()).state == pb.TASK_STATE_DONE
    await desk.desk.acknowledged(pb.UpdateAcknowledged(task_id="t", attempt=1))
    assert desk.desk.update("t") is None
    assert not desk.desk.held()
    await desk.desk.offered(deploy_task("t"))
    assert (await desk.end()).state == pb.TASK_STATE_DONE
    assert desk.deploy.begun == [("t", 1)]


async def test_a_later_attempt_ends_the_earlier_one_before_it_begins(desk: Desk) -> None:
    await desk.desk.offered(deploy_task("t"))
    await desk.deploy.began.wait()
    await desk.desk.offered(deploy_task("t", attempt=2))
    desk.deploy.go.set()
    update = await desk.end()
    assert (update.attempt, update.state) == (2, pb.TASK_STATE_DONE)
    assert desk.deploy.most == 1
    assert desk.deploy.begun == [("t", 1), ("t", 2)]


async def test_an_offer_of_an_attempt_that_is_over_begins_nothing(desk: Desk) -> None:
    await desk.desk.offered(deploy_task("t", attempt=3))
    await desk.deploy.began.wait()
    await desk.desk.offered(deploy_task("t", attempt=2))
    update = await desk.said()
    assert (update.attempt, update.state) == (3, pb.TASK_STATE_RUNNING)
    assert desk.deploy.begun == [("t", 3)]


async def test_what_ran_when_the_agent_ended_runs_again_and_what_had_ended_does_not(tmp_path: Path) -> None:
    first = await Desk(tmp_path).start()
    first.profile.go.set()
    await first.desk.offered(deploy_task("open"))
    await first.desk.offered(profile_task("over"))
    await first.end("over")
    await first.stop()
    second = await Desk(tmp_path).start()
    second.deploy.go.set()
    assert (await second.end("open")).state == pb.TASK_STATE_DONE
    second.desk.connected()
    assert (await second.end("over")).state == pb.TASK_STATE_DONE
    assert second.deploy.begun == [("open", 1)]
    assert not second.profile.begun
    await second.stop()


async def test_a_cancelled_task_ends_so_and_a_cancel_that_comes_too_late_changes_nothing(desk: Desk) -> None:
    await desk.desk.offered(deploy_task("t"))
    await desk.deploy.began.wait()
    await desk.desk.cancelled(pb.CancelOffer(task_id="t", attempt=1))
    assert (await desk.end()).state == pb.TASK_STATE_CANCELLED
    assert not desk.deploy.running
    desk.deploy.go.set()
    await desk.desk.offered(deploy_task("late"))
    await desk.end("late")
    await desk.desk.cancelled(pb.CancelOffer(task_id="late", attempt=1))
    assert (await desk.end("late")).state == pb.TASK_STATE_DONE


async def test_a_cancel_of_an_earlier_attempt_leaves_the_later_one_alone(desk: Desk) -> None:
    await desk.desk.offered(deploy_task("t", attempt=2))
    await desk.deploy.began.wait()
    await desk.desk.cancelled(pb.CancelOffer(task_id="t", attempt=1))
    desk.deploy.go.set()
    assert (await desk.end()).state == pb.TASK_STATE_DONE


async def test_a_cancel_while_the_end_is_written_does_not_undo_it(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.deploy.go.set()
    loop = asyncio.get_running_loop()
    write = AgentStore.end

    def cancelled_meanwhile(store: AgentStore, update: pb.TaskUpdate) -> None:
        order = desk.desk.cancelled(pb.CancelOffer(task_id="t", attempt=1))
        asyncio.run_coroutine_threadsafe(order, loop).result(WAIT_S)
        write(store, update)

    monkeypatch.setattr(AgentStore, "end", cancelled_meanwhile)
    await desk.desk.offered(deploy_task("t"))
    assert (await desk.end()).state == pb.TASK_STATE_DONE


@pytest.mark.parametrize(
    ("error", "state", "reason", "retry"),
    [
        (MeshError(Reason.SIGNATURE_MISSING, "no"), pb.TASK_STATE_FAILED, "SIGNATURE_MISSING", False),
        (MeshError(Reason.SERVICE_UNAVAILABLE, "no"), pb.TASK_STATE_FAILED, "SERVICE_UNAVAILABLE", True),
        (MeshError(Reason.STORAGE_FULL, "no"), pb.TASK_STATE_FAILED, "STORAGE_FULL", True),
        (MeshError(Reason.CANCELLED, "another stands in its place"), pb.TASK_STATE_CANCELLED, "", False),
        (RuntimeError("/a/path"), pb.TASK_STATE_FAILED, "INTERNAL", False),
    ],
    ids=["for good", "may pass", "full disk", "superseded", "unforeseen"],
)
async def test_an_error_ends_the_task_with_its_reason(
    desk: Desk, error: Exception, state: pb.TaskState.ValueType, reason: str, retry: bool
) -> None:
    desk.deploy.error = error
    desk.deploy.go.set()
    await desk.desk.offered(deploy_task("t"))
    update = await desk.end()
    assert (update.state, update.reason, update.retry) == (state, reason, retry)
    assert "/a/path" not in update.message


async def test_other_tasks_wait_for_a_place_and_deployments_do_not(desk: Desk) -> None:
    await desk.desk.offered(profile_task("p-1"))
    await desk.desk.offered(profile_task("p-2"))
    await desk.desk.offered(deploy_task("d"))
    await desk.deploy.began.wait()
    desk.profile.go.set()
    desk.deploy.go.set()
    ended = {(await desk.end(name)).task_id for name in ("p-2",)}
    assert ended == {"p-2"}
    assert desk.profile.most == 1
    assert desk.profile.begun == [("p-1", 1), ("p-2", 1)]


async def test_more_tasks_than_may_be_held_are_refused_until_some_are_acknowledged(desk: Desk) -> None:
    desk.deploy.go.set()
    for n in range(4):
        await desk.desk.offered(deploy_task(f"t-{n}", f"m-{n}"))
        await desk.end(f"t-{n}")
    await desk.desk.offered(deploy_task("more"))
    refused = await desk.end("more")
    assert (refused.reason, refused.retry) == ("QUEUE_FULL", True)
    assert [one.task.id for one in desk.store.tasks()] == [f"t-{n}" for n in range(4)]
    await desk.desk.acknowledged(pb.UpdateAcknowledged(task_id="t-0", attempt=1))
    await desk.desk.offered(deploy_task("more", attempt=2))
    assert (await desk.end("more")).state == pb.TASK_STATE_DONE


async def test_an_acknowledgement_of_another_attempt_is_none(desk: Desk) -> None:
    desk.deploy.go.set()
    await desk.desk.offered(deploy_task("t", attempt=2))
    await desk.end()
    await desk.desk.acknowledged(pb.UpdateAcknowledged(task_id="t", attempt=1))
    assert [held.attempt for held in desk.desk.held()] == [2]


async def test_progress_is_told_once_each_and_the_newest_counts(desk: Desk) -> None:
    await desk.desk.offered(deploy_task("t"))
    await desk.deploy.began.wait()
    for done in (1, 2, 3, 3):
        desk.deploy.tell(progress("loading", done / 10))
    assert (await desk.said()).progress == progress("loading", 0.3)
    desk.deploy.tell(progress("loading", 0.3))
    desk.outbox.heartbeat(pb.Heartbeat(cpu_share=0.5))
    assert (await desk.outbox.next()).HasField("heartbeat")


async def test_what_was_said_long_ago_is_said_again(desk: Desk) -> None:
    await desk.desk.offered(deploy_task("t"))
    await desk.deploy.began.wait()
    await desk.said()
    desk.now_s = 1.0
    desk.desk.remind(2.0)
    desk.outbox.heartbeat(pb.Heartbeat())
    assert (await desk.outbox.next()).HasField("heartbeat")
    desk.now_s = 2.5
    desk.desk.remind(2.0)
    assert (await desk.said()).task_id == "t"


async def test_how_long_an_end_is_unheard_counts_from_the_first_time_it_was_said_on_a_connection(desk: Desk) -> None:
    desk.deploy.go.set()
    await desk.desk.offered(deploy_task("t"))
    desk.now_s = 10.0
    await desk.end()
    desk.now_s = 14.0
    assert desk.desk.unheard_s() == 4.0
    desk.desk.connected()
    assert desk.desk.unheard_s() == 0.0
    await desk.end()
    await desk.desk.acknowledged(pb.UpdateAcknowledged(task_id="t", attempt=1))
    desk.now_s = 20.0
    assert desk.desk.unheard_s() == 0.0


async def test_an_end_that_cannot_be_written_is_said_all_the_same(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(store: AgentStore, update: pb.TaskUpdate) -> None:
        raise MeshError(Reason.STORAGE_FULL, "the disk is full")

    monkeypatch.setattr(AgentStore, "end", full)
    desk.deploy.go.set()
    await desk.desk.offered(deploy_task("t"))
    assert (await desk.end()).state == pb.TASK_STATE_DONE


async def test_the_outbox_holds_one_state_of_each_model_on_each_head_and_forgets_what_is_gone() -> None:
    outbox = Outbox(lambda task_id: None)
    for version in range(1, 100):
        outbox.serving([serving_pb2.ServingState(model="a", node="n-1", active_version=version)], [])
    outbox.serving([serving_pb2.ServingState(model="a", node="n-2"), serving_pb2.ServingState(model="b")], [])
    outbox.serving([], ["b"])
    said = (await outbox.next()).serving
    assert [(one.model, one.node, one.active_version) for one in said.states] == [("a", "n-1", 99), ("a", "n-2", 0)]
    assert list(said.gone) == ["b"]
    outbox.serving([], ["c"])
    outbox.serving([serving_pb2.ServingState(model="c")], [])
    said = (await outbox.next()).serving
    assert ([one.model for one in said.states], list(said.gone)) == (["c"], ["c"])


async def test_a_hello_names_no_more_tasks_than_the_fleet_takes_and_those_under_way_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk_module, "MAX_HELD", 2)
    made = await Desk(tmp_path).start()
    try:
        made.deploy.go.set()
        await made.desk.offered(deploy_task("over"))
        await made.end("over")
        for name in ("p-1", "p-2"):
            await made.desk.offered(profile_task(name))
        assert [one.task_id for one in made.desk.held()] == ["p-1", "p-2"]
    finally:
        await made.stop()
