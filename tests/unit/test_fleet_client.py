"""The operators' client of the fleet: what it asks, what it makes of answers, and watches that go on over outages."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from splitmesh.api.fleet.v1 import fleet_pb2 as pb
from splitmesh.api.serving.v1 import serving_pb2
from splitmesh.client.fleet import FIRST_TRIES, FleetClient
from splitmesh.client.fleet_deployments import (
    DeploymentState,
    Gate,
    Reference,
    Strategy,
    deployment_of,
    strategy_message,
)
from splitmesh.client.fleet_nodes import (
    AppShare,
    HostPolicy,
    NodeState,
    Phase,
    Target,
    node_of,
    target_message,
    target_of,
    version_progress_of,
)
from splitmesh.client.fleet_tasks import CollectWork, ProfileWork, TaskKind, TaskState, task_of
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import Channels
from splitmesh.kernel.discovery_static import StaticDiscovery
from tests.support.told_fleet import ToldFleet, told_fleet


@pytest.fixture
def told() -> ToldFleet:
    return ToldFleet()


@pytest.fixture
async def client(told: ToldFleet) -> AsyncIterator[FleetClient]:
    async with told_fleet(told) as address:
        channels = Channels(StaticDiscovery({"fleet": [address]}))
        yield FleetClient(channels)
        await channels.close()


def deployment(state: pb.DeploymentState.ValueType, **more: object) -> pb.Deployment:
    return pb.Deployment(id="d1", model="joints", version=4, state=state, **more)  # type: ignore[arg-type]


def news(state: pb.DeploymentState.ValueType, *nodes: str) -> pb.WatchDeploymentResponse:
    return pb.WatchDeploymentResponse(
        deployment=deployment(state), nodes=[pb.DeploymentNode(node=name, wave=1) for name in nodes]
    )


AWAY = MeshError(Reason.NOT_READY, "stops")


async def test_a_list_is_fetched_page_by_page_and_no_further_than_asked(client: FleetClient, told: ToldFleet) -> None:
    pages = {
        "": pb.ListNodesResponse(nodes=[pb.Node(node="a"), pb.Node(node="b")], next_page_token="more"),
        "more": pb.ListNodesResponse(nodes=[pb.Node(node="c")]),
    }
    told.answers["ListNodes"] = lambda request: pages[request.page_token]
    assert [node.node for node in await client.nodes()] == ["a", "b", "c"]
    assert [node.node for node in await client.nodes(limit=1)] == ["a"]
    assert told.asked("ListNodes")[-1].page_size == 1
    await client.nodes(Target(sites=("A",), labels={"hall": "3"}), state=NodeState.ONLINE)
    asked = told.asked("ListNodes")[-1]
    assert (list(asked.target.sites), dict(asked.target.labels), asked.state) == (
        ["A"],
        {"hall": "3"},
        pb.NODE_STATE_ONLINE,
    )


async def test_every_deployment_is_asked_for_under_a_name_of_its_own(client: FleetClient, told: ToldFleet) -> None:
    told.answers["Deploy"] = pb.DeployResponse(deployment=deployment(pb.DEPLOYMENT_STATE_ROLLING))
    for _ in range(2):
        await client.deploy("joints", 4, Target(every=True))
    await client.deploy("joints", 4, Target(every=True), request_id="mine")
    first, second, third = (request.request_id for request in told.asked("Deploy"))
    assert first
    assert first != second
    assert third == "mine"


async def test_work_travels_with_all_that_was_said(client: FleetClient, told: ToldFleet) -> None:
    told.answers["SubmitTask"] = lambda request: pb.SubmitTaskResponse(
        task=pb.Task(
            id="t1",
            kind=pb.TASK_KIND_COLLECT if request.WhichOneof("work") == "collect" else pb.TASK_KIND_PROFILE,
            state=pb.TASK_STATE_QUEUED,
            profile=request.profile if request.HasField("profile") else None,
            collect=request.collect if request.HasField("collect") else None,
        )
    )
    profile = await client.submit(ProfileWork("joints", 4, 60.0), node="mec-1", created_by="ann")
    collect = await client.submit(CollectWork("hard", ("joints",), True, 50, "why"), target=Target(lines=("2",)))
    assert (profile.kind, profile.what, profile.state) == (TaskKind.PROFILE, "joints:4", TaskState.QUEUED)
    assert (collect.kind, collect.what) == (TaskKind.COLLECT, "hard")
    first, second = told.asked("SubmitTask")
    assert (first.node, first.profile.budget_s, first.created_by) == ("mec-1", 60.0, "ann")
    assert (list(second.target.lines), second.collect.unlabelled, second.collect.max_samples) == (["2"], True, 50)


async def test_a_policy_and_labels_travel(client: FleetClient, told: ToldFleet) -> None:
    told.answers["SetHostPolicy"] = pb.SetHostPolicyResponse(nodes=["mec-1"])
    told.answers["SetNodeLabels"] = pb.SetNodeLabelsResponse(node=pb.Node(node="mec-1", labels={"hall": "3"}))
    assert await client.set_policy(Target(every=True), HostPolicy((AppShare("joints", 5, 2.0, 7),), 99)) == ["mec-1"]
    assert (await client.set_labels("mec-1", {"hall": "3", "old": ""})).labels == {"hall": "3"}
    (policy,), (labels,) = told.asked("SetHostPolicy"), told.asked("SetNodeLabels")
    (share,) = policy.policy.shares
    assert (share.model, share.priority, share.cpu_weight, share.memory_bytes) == ("joints", 5, 2.0, 7)
    assert (policy.policy.memory_bytes, policy.target.all, dict(labels.labels)) == (99, True, {"hall": "3", "old": ""})


async def test_a_refusal_keeps_its_reason(client: FleetClient, told: ToldFleet) -> None:
    told.answers["Rollback"] = MeshError(Reason.DEPLOYMENT_ACTIVE, "a later one is under way")
    told.streams["WatchTask"] = [[MeshError(Reason.TASK_NOT_FOUND, "no such task")]]
    with pytest.raises(MeshError) as refused:
        await client.rollback("joints")
    assert refused.value.reason is Reason.DEPLOYMENT_ACTIVE
    with pytest.raises(MeshError) as refused:
        await client.task("none")
    assert refused.value.reason is Reason.TASK_NOT_FOUND


async def test_a_watch_goes_on_over_outages_until_the_deployment_has_ended(
    client: FleetClient, told: ToldFleet
) -> None:
    told.streams["WatchDeployment"] = [
        [news(pb.DEPLOYMENT_STATE_SHADOW, "a", "b"), AWAY],
        [MeshError(Reason.QUEUE_FULL, "many watch")],
        [],  # ends without a word
        [news(pb.DEPLOYMENT_STATE_ROLLING, "a"), AWAY],
        [news(pb.DEPLOYMENT_STATE_DONE, "b")],
    ]
    told_of: list[Reason] = []
    seen = [
        (one.deployment.state, [node.node for node in one.nodes])
        async for one in client.watch_deployment("d1", lambda error: told_of.append(error.reason))
    ]
    assert seen == [
        (DeploymentState.SHADOW, ["a", "b"]),
        (DeploymentState.ROLLING, ["a"]),
        (DeploymentState.DONE, ["b"]),
    ]
    assert told_of == [Reason.NOT_READY, Reason.QUEUE_FULL, Reason.SERVICE_UNAVAILABLE, Reason.NOT_READY]


async def test_a_watch_that_never_had_an_answer_gives_up(told: ToldFleet, client: FleetClient) -> None:
    told.streams["WatchTask"] = [[AWAY] for _ in range(FIRST_TRIES)]
    with pytest.raises(MeshError, match="stops"):
        await anext(client.watch_task("t1"))
    assert len(told.asked("WatchTask")) == FIRST_TRIES


async def test_a_task_is_watched_to_its_end(client: FleetClient, told: ToldFleet) -> None:
    told.streams["WatchTask"] = [
        [
            pb.WatchTaskResponse(
                task=pb.Task(id="t1", state=state, progress=pb.TaskProgress(phase="timing", share=0.5))
            )
            for state in (pb.TASK_STATE_RUNNING, pb.TASK_STATE_FAILED)
        ]
    ]
    seen = [(task.state, task.phase, task.share, task.ended) async for task in client.watch_task("t1")]
    assert seen == [(TaskState.RUNNING, "timing", 0.5, False), (TaskState.FAILED, "timing", 0.5, True)]


def test_a_strategy_comes_back_as_it_was_sent() -> None:
    gate = Gate(0.01, 0.1, 50, 0.2, 0.3, 1000, Reference.LABELS, 3600.0)
    strategy = Strategy((5, 25, 100), gate, 0.1, 120.0, 60.0, True, 7, "production")
    sent = deployment(
        pb.DEPLOYMENT_STATE_PAUSED, strategy=strategy_message(strategy), resumes=pb.DEPLOYMENT_STATE_CANARY
    )
    found = deployment_of(sent)
    assert found.strategy == strategy
    assert (found.state, found.resumes, found.evidence, found.ended) == (
        DeploymentState.PAUSED,
        DeploymentState.CANARY,
        None,
        False,
    )
    assert deployment_of(deployment(pb.DEPLOYMENT_STATE_DONE)).strategy == Strategy()


def test_a_target_comes_back_as_it_was_sent_and_reads_like_one() -> None:
    target = Target(("n",), ("A", "B"), ("2",), ("cams",), {"hall": "3"})
    assert target_of(target_message(target)) == target
    assert str(target) == "node n, site A or B, line 2, group cams, hall=3"
    assert (str(Target()), str(Target(every=True))) == ("no host", "every host")


def test_a_host_comes_with_what_it_can_do_and_serves() -> None:
    chosen = serving_pb2.BackendCandidate(backend="openvino-cpu", precision="fp32", threads=2, p99_ms=1.5)
    state = serving_pb2.ServingState(
        model="joints",
        generation=3,
        active_version=3,
        wanted=serving_pb2.VersionState(
            version=4,
            phase=serving_pb2.PHASE_DOWNLOADING,
            done_bytes=1,
            total_bytes=4,
            backend=serving_pb2.BackendChoice(chosen=chosen, candidates=[chosen]),
        ),
    )
    message = pb.Node(
        node="mec-1",
        state=pb.NODE_STATE_ONLINE,
        camera_groups=["cams"],
        capabilities=pb.Capabilities(cores=4, backends=[pb.Backend(name="tensorrt", unusable="not installed")]),
        metrics=pb.Heartbeat(spooled_records=9),
        serving=[state],
    )
    message.seen_time.FromDatetime(datetime(2026, 3, 1, tzinfo=UTC))
    node = node_of(message)
    (serving,) = node.serving
    assert node.state is NodeState.ONLINE
    assert (node.capabilities.cores, node.capabilities.backends[0].unusable) == (4, "not installed")
    assert (node.metrics.spooled_records, node.policy) == (9, None)
    assert node.seen_time == datetime(2026, 3, 1, tzinfo=UTC)
    assert serving.wanted is not None
    assert serving.wanted.phase is Phase.DOWNLOADING
    assert str(serving.wanted) == "downloading 25%"
    assert serving.wanted.backend is not None
    assert serving.wanted.backend.p99_ms == 1.5
    assert serving.candidate is None


def test_what_a_later_release_may_say_is_not_an_error() -> None:
    assert version_progress_of(serving_pb2.VersionState(version=1, phase=99)).phase is None  # type: ignore[arg-type]
    assert task_of(pb.Task(id="t", kind=99, state=pb.TASK_STATE_QUEUED)).kind is TaskKind.UNKNOWN  # type: ignore[arg-type]


def test_a_deploy_task_says_what_it_orders() -> None:
    orders = serving_pb2.Assignment(model="joints", version=3, trial=serving_pb2.Trial(candidate=4))
    task = pb.Task(id="t", kind=pb.TASK_KIND_DEPLOY, state=pb.TASK_STATE_QUEUED)
    task.deploy.assignment.CopyFrom(orders)
    assert task_of(task).what == "joints:3, 4 tried"
    task.deploy.assignment.CopyFrom(serving_pb2.Assignment(model="joints"))
    assert task_of(task).what == "joints: nothing more"


async def test_a_watch_that_ended_as_planned_is_asked_for_again_without_a_complaint(
    client: FleetClient, told: ToldFleet
) -> None:
    told.streams["WatchDeployment"] = [
        [news(pb.DEPLOYMENT_STATE_ROLLING, "a")],
        [news(pb.DEPLOYMENT_STATE_ROLLING, "a")],
        [news(pb.DEPLOYMENT_STATE_DONE, "a")],
    ]
    told_of: list[MeshError] = []
    seen = [one.deployment.state async for one in client.watch_deployment("d1", told_of.append)]
    assert seen == [DeploymentState.ROLLING, DeploymentState.ROLLING, DeploymentState.DONE]
    assert not told_of
