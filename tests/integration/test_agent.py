"""An agent between a scripted fleet and heads that serve nothing: real streams, a real log, real kills."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from edge.agent.app import build
from edge.agent.config import AgentSettings
from edge.agent.store import AgentStore
from splitmesh.api.fleet.v1 import fleet_pb2 as pb
from splitmesh.api.serving.v1 import serving_pb2
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.lifecycle import Host
from splitmesh.testing.links import PROFILES
from splitmesh.testing.processes import ProcessLauncher
from splitmesh.testing.relay import LinkRelay
from tests.support import fake_fleet, fake_serving
from tests.support.fake_fleet import FakeFleet, deploy_task
from tests.support.fake_serving import FakeServing, at_phase

ROOT = Path(__file__).parents[2]
DONE, FAILED, CANCELLED = pb.TASK_STATE_DONE, pb.TASK_STATE_FAILED, pb.TASK_STATE_CANCELLED


def settings(folder: Path, fleet: FakeFleet, *heads: FakeServing, **more: object) -> AgentSettings:
    addresses = [f"fleet={fleet.address}"]
    if heads:
        addresses.append("head=" + ";".join(head.address for head in heads))
    values: dict[str, object] = {
        "data_dir": folder / "agent",
        "datasets_dir": folder / "datasets",
        "static_addresses": ",".join(addresses),
        "node": "mec-1",
        "site": "lyon",
        "line": "line-2",
        "camera_groups": "left, right",
        "labels": "hall=3,shift=day",
        "replaced_wait_s": 0.2,
    }
    return AgentSettings(**values | more)  # type: ignore[arg-type]


@asynccontextmanager
async def running(told: AgentSettings) -> AsyncIterator[Host]:
    async with Host("agent", told, build) as host:
        yield host


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as made:
        yield made


@pytest.fixture
async def fleet(stack: AsyncExitStack) -> FakeFleet:
    return await stack.enter_async_context(fake_fleet.served(FakeFleet()))


@pytest.fixture
async def head(stack: AsyncExitStack) -> FakeServing:
    return await stack.enter_async_context(fake_serving.served(FakeServing("mec-1")))


async def told(fleet: FakeFleet, phase: str) -> None:
    """Waits for a phase as the newest word on anything."""
    await fleet.until(lambda: bool(fleet.updates) and fleet.updates[-1].progress.phase == phase)


@contextmanager
def said(logger: str, text: str) -> Iterator[asyncio.Event]:
    """Set when the log says it."""
    event = asyncio.Event()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if text in record.getMessage():
                event.set()

    listener = Listener()
    logging.getLogger(logger).addHandler(listener)
    try:
        yield event
    finally:
        logging.getLogger(logger).removeHandler(listener)


def end_of(fleet: FakeFleet, task_id: str) -> pb.TaskUpdate:
    return fleet.ended[task_id]


async def test_hello_says_who_the_host_is_and_what_it_can_do(tmp_path: Path, fleet: FakeFleet) -> None:
    async with running(settings(tmp_path, fleet)):
        await fleet.until(lambda: bool(fleet.sessions) and len(fleet.beats()) >= 2)
    hello = fleet.session.hello
    assert (hello.node, hello.site, hello.line) == ("mec-1", "lyon", "line-2")
    assert list(hello.camera_groups) == ["left", "right"]
    assert dict(hello.labels) == {"hall": "3", "shift": "day"}
    assert hello.capabilities.cores >= 1
    assert hello.capabilities.memory_bytes > 1 << 20
    assert len(hello.capabilities.fingerprint) == 64
    assert "onnxruntime-cpu" in [one.name for one in hello.capabilities.backends if not one.unusable]
    assert set(hello.capabilities.task_kinds) == {pb.TASK_KIND_DEPLOY, pb.TASK_KIND_PROFILE, pb.TASK_KIND_COLLECT}
    assert fleet.beats()[-1].memory_bytes > 0
    assert fleet.beats()[-1].disk_free_bytes > 0
    assert len(fleet.sessions) == 1


async def test_a_deployment_is_done_when_every_head_process_serves_it(
    tmp_path: Path, fleet: FakeFleet, stack: AsyncExitStack
) -> None:
    heads = [
        await stack.enter_async_context(
            fake_serving.served(FakeServing(f"mec-1-{n}", become=lambda one: at_phase(one, serving_pb2.PHASE_LOADING)))
        )
        for n in (1, 2)
    ]
    task = deploy_task("t-1", version=3, generation=7)
    fleet.tasks[task.id] = task
    async with running(settings(tmp_path, fleet, *heads, heads="mec-1")):
        for one in heads:
            await one.until(lambda one=one: len(one.assigned) == 1)  # type: ignore[misc]
        await heads[0].say(fake_serving.serving(task.deploy.assignment))
        await fleet.until(lambda: any("1 of 2 heads" in update.progress.message for update in fleet.updates))
        assert not fleet.ended
        await heads[1].say(fake_serving.serving(task.deploy.assignment))
        await fleet.until(lambda: bool(fleet.ended))
        await fleet.until(lambda: fleet.states().keys() == {("parts", "mec-1-1"), ("parts", "mec-1-2")})
    assert end_of(fleet, "t-1").state == DONE
    assert dict(end_of(fleet, "t-1").result) == {"model": "parts", "version": "3", "heads": "2"}
    assert {update.progress.phase for update in fleet.updates} >= {"loading", "done"}
    assert all(state.active_version == 3 for state in fleet.states().values())


async def test_a_trial_is_done_when_the_candidate_is_tried(tmp_path: Path, fleet: FakeFleet, head: FakeServing) -> None:
    task = deploy_task("t-1", version=3, candidate=4)
    without = fake_serving.serving(task.deploy.assignment)
    without.candidate.phase = serving_pb2.PHASE_LOADING
    head.become = lambda assignment: without
    fleet.tasks[task.id] = task
    async with running(settings(tmp_path, fleet, head)):
        await fleet.until(lambda: any(update.progress.phase == "loading" for update in fleet.updates))
        assert not fleet.ended
        await head.say(fake_serving.serving(task.deploy.assignment))
        await fleet.until(lambda: bool(fleet.ended))
    assert end_of(fleet, "t-1").state == DONE


async def test_progress_is_told_phase_by_phase_and_grows(tmp_path: Path, fleet: FakeFleet, head: FakeServing) -> None:
    task = deploy_task("t-1")
    assignment = task.deploy.assignment
    head.become = lambda one: at_phase(one, serving_pb2.PHASE_QUEUED)
    fleet.tasks[task.id] = task
    steps = [
        ("downloading", at_phase(assignment, serving_pb2.PHASE_DOWNLOADING, done_bytes=50, total_bytes=100)),
        ("verifying", at_phase(assignment, serving_pb2.PHASE_VERIFYING)),
        ("loading", at_phase(assignment, serving_pb2.PHASE_LOADING)),
        ("warming", at_phase(assignment, serving_pb2.PHASE_WARMING)),
        ("waiting-for-tail", at_phase(assignment, serving_pb2.PHASE_WAITING_FOR_TAIL)),
        ("done", fake_serving.serving(assignment)),
    ]
    async with running(settings(tmp_path, fleet, head)):
        await head.until(lambda: bool(head.assigned))
        for phase, state in steps:
            await head.say(state)
            await told(fleet, phase)
    shares = [update.progress.share for update in fleet.updates]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


async def test_a_withdrawn_assignment_is_done_when_no_head_holds_it(
    tmp_path: Path, fleet: FakeFleet, head: FakeServing
) -> None:
    first, second = deploy_task("t-1"), deploy_task("t-2", version=0, generation=2)
    fleet.tasks[first.id] = first
    async with running(settings(tmp_path, fleet, head)):
        await fleet.until(lambda: "t-1" in fleet.ended)
        await fleet.offer(second)
        await fleet.until(lambda: "t-2" in fleet.ended)
        await fleet.until(lambda: not fleet.states())
    assert end_of(fleet, "t-2").state == DONE
    assert [(one.model, one.generation) for one in head.withdrawn] == [("parts", 2)]


@pytest.mark.parametrize(
    ("reason", "ends"), [("SIGNATURE_MISSING", True), ("SOMETHING_NEW", True), ("SERVICE_UNAVAILABLE", False)]
)
async def test_a_version_that_cannot_be_used_fails_the_task_unless_waiting_may_help(
    tmp_path: Path, fleet: FakeFleet, head: FakeServing, reason: str, ends: bool
) -> None:
    task = deploy_task("t-1")
    head.become = lambda one: at_phase(one, serving_pb2.PHASE_FAILED, reason=reason, message="why not")
    fleet.tasks[task.id] = task
    async with running(settings(tmp_path, fleet, head)):
        if not ends:
            await fleet.until(lambda: any(update.progress.message == "why not" for update in fleet.updates))
            await head.say(fake_serving.serving(task.deploy.assignment))
        await fleet.until(lambda: bool(fleet.ended))
    end = end_of(fleet, "t-1")
    if ends:
        assert (end.state, end.message, end.retry) == (FAILED, "mec-1: why not", False)
        assert end.reason == (reason if reason in Reason.__members__ else "INTERNAL")
    else:
        assert end.state == DONE


async def test_a_head_that_refuses_the_assignment_fails_the_task_with_its_reason(
    tmp_path: Path, fleet: FakeFleet, head: FakeServing
) -> None:
    head.refusal = MeshError(Reason.STORAGE_FULL, "the disk is full")
    fleet.tasks["t-1"] = deploy_task("t-1")
    async with running(settings(tmp_path, fleet, head)):
        await fleet.until(lambda: bool(fleet.ended))
    end = end_of(fleet, "t-1")
    assert (end.state, end.reason, end.retry) == (FAILED, "STORAGE_FULL", True)


async def test_without_a_head_a_deployment_waits_and_says_so_and_a_head_that_comes_gets_it(
    tmp_path: Path, fleet: FakeFleet, stack: AsyncExitStack
) -> None:
    gone = FakeServing("mec-1")
    async with fake_serving.served(gone):
        pass
    fleet.tasks["t-1"] = deploy_task("t-1")
    async with running(settings(tmp_path, fleet, gone)):
        await fleet.until(lambda: any(update.progress.phase == "waiting-for-head" for update in fleet.updates))
        head = FakeServing("mec-1")
        await stack.enter_async_context(fake_serving.served(head, port=int(gone.address.rpartition(":")[2])))
        await fleet.until(lambda: bool(fleet.ended))
    assert end_of(fleet, "t-1").state == DONE
    assert len(head.assigned) == 1


async def test_a_head_that_restarts_is_told_again_only_what_it_has_lost(
    tmp_path: Path, fleet: FakeFleet, stack: AsyncExitStack
) -> None:
    fleet.policy = serving_pb2.HostPolicy(generation=4, memory_bytes=1 << 30)
    for task in (deploy_task("t-1", "kept"), deploy_task("t-2", "lost")):
        fleet.tasks[task.id] = task
    before = FakeServing("mec-1")
    async with fake_serving.served(before):
        await stack.enter_async_context(running(settings(tmp_path, fleet, before)))
        await fleet.until(lambda: len(fleet.ended) == 2)
        await fleet.until(lambda: bool(fleet.beats()) and fleet.beats()[-1].policy_generation == 4)
    after = FakeServing("mec-1", states={"kept": before.states["kept"]})
    await stack.enter_async_context(fake_serving.served(after, port=int(before.address.rpartition(":")[2])))
    await after.until(lambda: bool(after.assigned) and bool(after.policies))
    await fleet.until(lambda: fleet.beats()[-1].policy_generation == 4)
    assert [one.model for one in after.assigned] == ["lost"]
    assert [policy.generation for policy in after.policies] == [4]


async def test_heads_of_other_hosts_are_left_alone(
    tmp_path: Path, fleet: FakeFleet, head: FakeServing, stack: AsyncExitStack
) -> None:
    other = await stack.enter_async_context(fake_serving.served(FakeServing("mec-2")))
    fleet.tasks["t-1"] = deploy_task("t-1")
    async with running(settings(tmp_path, fleet, other, head, heads="mec-1")):
        await fleet.until(lambda: bool(fleet.ended))
    assert end_of(fleet, "t-1").result["heads"] == "1"
    assert not other.assigned


async def test_a_head_that_is_silent_is_told_as_answering_nothing_until_it_is_back(
    tmp_path: Path, fleet: FakeFleet, stack: AsyncExitStack
) -> None:
    head = FakeServing("mec-1")
    fleet.tasks["t-1"] = deploy_task("t-1")
    async with AsyncExitStack() as life:
        await life.enter_async_context(fake_serving.served(head))
        port = int(head.address.rpartition(":")[2])
        await stack.enter_async_context(running(settings(tmp_path, fleet, head, head_silence_s=0.3)))
        await fleet.until(lambda: bool(fleet.ended) and fleet.states()["parts", "mec-1"].active_version == 1)
    await fleet.until(lambda: fleet.states()["parts", "mec-1"].active_version == 0)
    assert fleet.states()["parts", "mec-1"].wanted.reason == "SERVICE_UNAVAILABLE"
    back = FakeServing("mec-1", states=dict(head.states))
    await stack.enter_async_context(fake_serving.served(back, port=port))
    await fleet.until(lambda: fleet.states()["parts", "mec-1"].active_version == 1)
    assert not back.assigned


@pytest.mark.parametrize("at", range(1, 8))
async def test_a_stream_that_is_cut_after_any_message_loses_no_task_and_repeats_none(
    tmp_path: Path, fleet: FakeFleet, head: FakeServing, at: int
) -> None:
    fleet.cuts = [at, at, 2]
    for n in range(3):
        fleet.tasks[f"t-{n}"] = deploy_task(f"t-{n}", f"model-{n}")
    async with running(settings(tmp_path, fleet, head)):
        await fleet.until(lambda: len(fleet.ended) == 3 and len(fleet.sessions) >= 3)
    assert {update.state for update in fleet.ended.values()} == {DONE}
    assert sorted(one.model for one in head.assigned) == ["model-0", "model-1", "model-2"]
    later = [held.task_id for session in fleet.sessions[1:] for held in session.hello.held]
    assert set(later) <= set(fleet.tasks)


async def test_an_end_that_nobody_acknowledged_is_said_again_on_every_connection(
    tmp_path: Path, fleet: FakeFleet, head: FakeServing
) -> None:
    fleet.acknowledges = False
    fleet.heartbeat_s, fleet.lease_s = 60.0, 600.0  # too long for a reminder
    fleet.tasks["t-1"] = deploy_task("t-1")
    async with running(settings(tmp_path, fleet, head)):
        await fleet.until(lambda: bool(fleet.ended))
        fleet.session.cut()
        await fleet.until(lambda: len(fleet.sessions) == 2 and len([u for u in fleet.updates if u.state == DONE]) >= 2)
        assert [held.task_id for held in fleet.session.hello.held] == ["t-1"]
        fleet.acknowledges = True
        fleet.session.cut()
        await fleet.until(lambda: fleet.acknowledged == [("t-1", 1)] and len(fleet.sessions) == 3)
        fleet.session.cut()
        await fleet.until(lambda: len(fleet.sessions) == 4)
        assert not fleet.session.hello.held
    assert len(head.assigned) == 1


async def test_a_fleet_that_acknowledges_nothing_is_taken_for_a_dead_link(
    tmp_path: Path, fleet: FakeFleet, head: FakeServing
) -> None:
    fleet.acknowledges = False
    fleet.heartbeat_s = 0.05
    fleet.tasks["t-1"] = deploy_task("t-1")
    async with running(settings(tmp_path, fleet, head)):
        await fleet.until(lambda: len(fleet.sessions) >= 2)


async def test_the_same_offer_again_is_answered_from_the_log_also_after_a_restart(
    tmp_path: Path, fleet: FakeFleet, head: FakeServing
) -> None:
    task = deploy_task("t-1")
    fleet.tasks[task.id] = task
    async with running(settings(tmp_path, fleet, head)):
        await fleet.until(lambda: bool(fleet.acknowledged))
        await fleet.offer(task)
        await fleet.until(lambda: len(fleet.acknowledged) == 2)
    async with running(settings(tmp_path, fleet, head)):
        await fleet.until(lambda: len(fleet.sessions) == 2)
        await fleet.offer(task)
        await fleet.until(lambda: len(fleet.acknowledged) == 3)
    assert len(head.assigned) == 1
    assert {update.state for update in fleet.updates if update.attempt == 1} <= {DONE, pb.TASK_STATE_RUNNING}


async def test_progress_renews_the_lease_while_nothing_changes(
    tmp_path: Path, fleet: FakeFleet, head: FakeServing
) -> None:
    head.become = lambda one: at_phase(one, serving_pb2.PHASE_LOADING)
    fleet.tasks["t-1"] = deploy_task("t-1")
    async with running(settings(tmp_path, fleet, head)):
        await fleet.until(lambda: len([u for u in fleet.updates if u.progress.phase == "loading"]) >= 4)


async def test_a_running_task_is_cancelled_and_one_that_is_not_here_is_answered_too(
    tmp_path: Path, fleet: FakeFleet, head: FakeServing
) -> None:
    head.become = lambda one: at_phase(one, serving_pb2.PHASE_LOADING)
    fleet.tasks["t-1"] = deploy_task("t-1")
    async with running(settings(tmp_path, fleet, head)):
        await fleet.until(lambda: any(update.progress.phase == "loading" for update in fleet.updates))
        await fleet.session.send(cancel=pb.CancelOffer(task_id="t-1", attempt=1))
        await fleet.session.send(cancel=pb.CancelOffer(task_id="nowhere", attempt=2))
        await fleet.until(lambda: len(fleet.ended) == 2)
    assert {(one.task_id, one.attempt, one.state) for one in fleet.ended.values()} == {
        ("t-1", 1, CANCELLED),
        ("nowhere", 2, CANCELLED),
    }


async def test_a_newer_deployment_of_the_model_takes_the_place_of_the_one_under_way(
    tmp_path: Path, fleet: FakeFleet, head: FakeServing
) -> None:
    head.become = lambda one: (
        fake_serving.serving(one) if one.version == 2 else at_phase(one, serving_pb2.PHASE_LOADING)
    )
    fleet.tasks["t-1"] = deploy_task("t-1", version=1, generation=1)
    async with running(settings(tmp_path, fleet, head)):
        await fleet.until(lambda: any(update.progress.phase == "loading" for update in fleet.updates))
        await fleet.offer(deploy_task("t-2", version=2, generation=2))
        await fleet.until(lambda: len(fleet.ended) == 2)
    assert end_of(fleet, "t-1").state == CANCELLED
    assert end_of(fleet, "t-2").state == DONE


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        (pb.Task(id="t", kind=pb.TASK_KIND_TRAIN, attempt=1), "UNIMPLEMENTED"),
        (pb.Task(id="t", kind=99, attempt=1), "UNIMPLEMENTED"),  # type: ignore[arg-type]
        (pb.Task(id="t", attempt=1), "UNIMPLEMENTED"),
        (pb.Task(id="t", kind=pb.TASK_KIND_DEPLOY, attempt=1), "FIELD_INVALID"),
        (pb.Task(id="t", kind=pb.TASK_KIND_DEPLOY, attempt=1, profile=pb.ProfileWork(model="m")), "FIELD_INVALID"),
        (deploy_task("t", model=""), "FIELD_INVALID"),
        (deploy_task("t", model="x" * 500), "FIELD_INVALID"),
        (deploy_task("t", generation=0), "FIELD_INVALID"),
        (deploy_task("t", model="x" * (1 << 21)), "FRAME_TOO_LARGE"),
        (
            pb.Task(id="t", kind=pb.TASK_KIND_PROFILE, attempt=1, profile=pb.ProfileWork(model="m", budget_s=-1)),
            "FIELD_INVALID",
        ),
        (
            pb.Task(
                id="t", kind=pb.TASK_KIND_PROFILE, attempt=1, profile=pb.ProfileWork(model="m", budget_s=float("nan"))
            ),
            "FIELD_INVALID",
        ),
        (
            pb.Task(id="t", kind=pb.TASK_KIND_COLLECT, attempt=1, collect=pb.CollectWork(dataset="boards")),
            "CONTENT_NOT_ALLOWED",
        ),
    ],
    ids=[
        *(
            "no training",
            "a kind of later releases",
            "no kind",
            "no work",
            "another kind's work",
            "no model",
            "a long name",
        ),
        *("no generation", "a huge task", "a negative budget", "no number", "nothing may leave"),
    ],
)
async def test_what_cannot_be_done_fails_with_the_reason_and_the_agent_goes_on(
    tmp_path: Path, fleet: FakeFleet, head: FakeServing, task: pb.Task, reason: str
) -> None:
    fleet.tasks[task.id] = task
    fleet.tasks["good"] = deploy_task("good", "another")
    async with running(settings(tmp_path, fleet, head)):
        await fleet.until(lambda: len(fleet.ended) == 2)
    assert (end_of(fleet, "t").state, end_of(fleet, "t").reason) == (FAILED, reason)
    assert not end_of(fleet, "t").retry
    assert end_of(fleet, "good").state == DONE
    assert len(fleet.sessions) == 1


async def test_messages_that_mean_nothing_do_no_harm(tmp_path: Path, fleet: FakeFleet, head: FakeServing) -> None:
    async with running(settings(tmp_path, fleet, head)):
        await fleet.until(lambda: bool(fleet.sessions))
        await fleet.session.send()
        await fleet.session.send(offer=pb.Task())
        await fleet.session.send(offer=pb.Task(id="\n" * 10, attempt=1))
        await fleet.session.send(offer=pb.Task(id="x" * 100_000, attempt=1))
        await fleet.session.send(cancel=pb.CancelOffer(task_id="\0"))
        await fleet.session.send(acknowledged=pb.UpdateAcknowledged(task_id="what"))
        await fleet.session.send(policy=serving_pb2.HostPolicy())
        await fleet.session.send(welcome=pb.Welcome(session_id="twice"))
        await fleet.offer(deploy_task("t-1"))
        await fleet.until(lambda: bool(fleet.ended))
    assert end_of(fleet, "t-1").state == DONE
    assert {update.task_id for update in fleet.updates} == {"t-1"}
    assert len(fleet.sessions) == 1


@pytest.mark.parametrize(
    "message", [pb.ConnectResponse(), pb.ConnectResponse(offer=pb.Task(id="t"))], ids=["", "offer"]
)
async def test_a_fleet_that_does_not_welcome_is_left_and_tried_again(
    tmp_path: Path, fleet: FakeFleet, message: pb.ConnectResponse
) -> None:
    fleet.raw_first = message
    async with running(settings(tmp_path, fleet)):
        await fleet.until(lambda: bool(fleet.sessions))
        fleet.raw_first = None
        await fleet.until(lambda: len(fleet.sessions) == 2 and bool(fleet.beats()))


@pytest.mark.parametrize("reason", [Reason.NODE_REPLACED, Reason.FIELD_INVALID])
async def test_an_agent_that_is_not_wanted_comes_back_after_its_wait(
    tmp_path: Path, fleet: FakeFleet, reason: Reason, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    sleep = asyncio.sleep

    async def noted(delay_s: float) -> None:
        waited.append(delay_s)
        await sleep(0 if 20.0 <= delay_s <= 60.0 else delay_s)

    monkeypatch.setattr(asyncio, "sleep", noted)
    async with running(settings(tmp_path, fleet, replaced_wait_s=40.0)):
        await fleet.until(lambda: bool(fleet.sessions))
        fleet.session.cut(reason)
        await fleet.until(lambda: len(fleet.sessions) == 2)
    assert [one for one in waited if 30.0 <= one <= 50.0]


async def test_absurd_welcomes_are_taken_as_the_nearest_that_can_be(
    tmp_path: Path, fleet: FakeFleet, head: FakeServing
) -> None:
    fleet.heartbeat_s, fleet.lease_s = -5.0, 0.0
    fleet.tasks["t-1"] = deploy_task("t-1")
    async with running(settings(tmp_path, fleet, head)):
        await fleet.until(lambda: bool(fleet.ended) and len(fleet.beats()) >= 3)
    assert len(fleet.sessions) == 1


async def test_a_policy_reaches_every_head_and_the_fleet_hears_when_it_has(
    tmp_path: Path, fleet: FakeFleet, stack: AsyncExitStack
) -> None:
    heads = [await stack.enter_async_context(fake_serving.served(FakeServing(f"mec-1-{n}"))) for n in (1, 2)]
    fleet.heartbeat_s = 30.0  # not what tells of it
    fleet.policy = serving_pb2.HostPolicy(generation=3, shares=[serving_pb2.HostShare(model="parts", priority=5)])
    async with running(settings(tmp_path, fleet, *heads)):
        await fleet.until(lambda: bool(fleet.sessions) and any(beat.policy_generation == 3 for beat in fleet.beats()))
        await fleet.session.send(policy=serving_pb2.HostPolicy(generation=2))
        await fleet.session.send(policy=serving_pb2.HostPolicy(generation=5))
        for head in heads:
            await head.until(lambda head=head: head.policy_generation == 5)  # type: ignore[misc]
        await fleet.until(lambda: fleet.beats()[-1].policy_generation == 5)
    for head in heads:
        generations = [policy.generation for policy in head.policies]
        assert generations == [3, 5] or generations == [5]


async def test_a_full_disk_fails_the_task_so_that_it_may_be_tried_again(
    tmp_path: Path, fleet: FakeFleet, head: FakeServing, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(store: AgentStore, task: pb.Task) -> None:
        raise MeshError(Reason.STORAGE_FULL, "the disk is full")

    async with running(settings(tmp_path, fleet, head)):
        await fleet.until(lambda: bool(fleet.sessions))
        with monkeypatch.context() as patch:
            patch.setattr(AgentStore, "begin", full)
            await fleet.offer(deploy_task("t-1"))
            await fleet.until(lambda: "t-1" in fleet.ended)
        assert not head.assigned
        await fleet.offer(deploy_task("t-1", attempt=2))
        await fleet.until(lambda: any(update.attempt == 2 and update.state == DONE for update in fleet.updates))
    end = end_of(fleet, "t-1")
    assert (end.attempt, end.state, end.reason, end.retry) == (1, FAILED, "STORAGE_FULL", True)


async def test_an_agent_killed_in_mid_task_goes_on_with_it_and_does_nothing_twice(
    tmp_path: Path, fleet: FakeFleet, head: FakeServing
) -> None:
    head.become = lambda one: at_phase(one, serving_pb2.PHASE_LOADING)
    task = deploy_task("t-1")
    fleet.tasks[task.id] = task
    launcher = ProcessLauncher(ROOT, tmp_path / "work")
    told = settings(tmp_path, fleet, head).model_dump(include={"data_dir", "static_addresses", "node", "datasets_dir"})
    values = {name: str(value) for name, value in told.items()}
    first = await launcher.launch("agent", values)
    try:
        await fleet.until(lambda: any(update.progress.phase == "loading" for update in fleet.updates))
        await first.kill()
        second = await launcher.launch("agent", values)
        try:
            await fleet.until(lambda: len(fleet.sessions) == 2 and bool(fleet.session.hello.held))
            assert fleet.session.hello.boot_id != fleet.sessions[0].hello.boot_id
            await head.say(fake_serving.serving(task.deploy.assignment))
            await fleet.until(lambda: bool(fleet.acknowledged))
        finally:
            await second.stop()
    finally:
        await first.kill()
    assert end_of(fleet, "t-1").state == DONE
    assert [one.generation for one in head.assigned] == [1]


async def test_a_second_agent_on_the_same_folder_does_not_start(tmp_path: Path, fleet: FakeFleet) -> None:
    async with running(settings(tmp_path, fleet)):
        with pytest.raises(MeshError, match="another agent"):
            async with running(settings(tmp_path, fleet)):
                pass


async def test_an_agent_whose_fleet_is_not_there_serves_the_heads_as_it_was_told_before(
    tmp_path: Path, fleet: FakeFleet, head: FakeServing
) -> None:
    fleet.tasks["t-1"] = deploy_task("t-1")
    async with running(settings(tmp_path, fleet, head)):
        await fleet.until(lambda: bool(fleet.acknowledged))
    async with fake_serving.served(FakeServing("mec-1")) as replaced:
        nowhere = FakeFleet(address="127.0.0.1:9")
        async with running(settings(tmp_path, nowhere, replaced)):
            await replaced.until(lambda: bool(replaced.assigned))
    assert [(one.model, one.version) for one in replaced.assigned] == [("parts", 1)]


async def test_a_link_that_swallows_everything_without_a_word_is_left_for_a_new_one(
    tmp_path: Path, fleet: FakeFleet, head: FakeServing, stack: AsyncExitStack
) -> None:
    head.become = lambda one: at_phase(one, serving_pb2.PHASE_LOADING)
    relay = await stack.enter_async_context(LinkRelay(fleet.address, PROFILES["loopback"]))
    beyond = FakeFleet(address=relay.address)
    task = deploy_task("t-1")
    fleet.tasks[task.id] = task
    fleet.heartbeat_s = 30.0  # the fleet's silence tells nothing
    async with running(settings(tmp_path, beyond, head)):
        await fleet.until(lambda: any(update.progress.phase == "loading" for update in fleet.updates))
        with said("edge.agent.connection", "no stream to the fleet") as noticed:
            relay.down(refuse_new=False)
            await head.say(fake_serving.serving(task.deploy.assignment))
            async with asyncio.timeout(fake_fleet.WAIT_S):
                await noticed.wait()
        assert not fleet.ended
        relay.up()
        await fleet.until(lambda: bool(fleet.acknowledged))
    assert end_of(fleet, "t-1").state == DONE
    assert len(head.assigned) == 1
