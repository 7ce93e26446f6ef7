"""What `splitmesh nodes`, `deploy`, `deployments`, `rollback` and `tasks` print and how they end, by what a fleet says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from splitmesh.api.fleet.v1 import fleet_pb2 as pb
from splitmesh.api.registry.v1 import registry_pb2
from splitmesh.api.serving.v1 import serving_pb2
from splitmesh.errors import MeshError, Reason
from tests.integration.command_line import Ended, refused, splitmesh_here
from tests.support.scripted_registry import Scripted, serving
from tests.support.told_fleet import ToldFleet, told_fleet

AWAY = MeshError(Reason.NOT_READY, "stops")


class OneVersion(Scripted):
    """A registry in which `joints:4` is the newest version and `joints@next`."""

    async def GetVersion(
        self, request: registry_pb2.GetVersionRequest, context: Any
    ) -> registry_pb2.GetVersionResponse:
        return registry_pb2.GetVersionResponse(version=registry_pb2.ModelVersion(model="joints", version=4))


class Shell:
    """Commands against a fleet that is told what to say, each in a thread: they bring a loop of their own."""

    def __init__(self, told: ToldFleet, fleet: str, registry: str) -> None:
        self.told = told
        self._addresses = f"fleet={fleet},registry={registry}"

    async def __call__(self, *arguments: object) -> Ended:
        return await asyncio.to_thread(splitmesh_here, *arguments, STATIC_ADDRESSES=self._addresses)


@pytest.fixture
async def shell() -> AsyncIterator[Shell]:
    told = ToldFleet()
    async with told_fleet(told) as address, serving(OneVersion()) as channels:
        (registry,) = await channels.discovery.resolve("registry")
        yield Shell(told, address, registry.address)


def deployment(state: pb.DeploymentState.ValueType, **more: Any) -> pb.Deployment:
    counts = pb.DeploymentCounts(total=2, serving=1, under_way=1)
    return pb.Deployment(
        id="d-7",
        model="joints",
        version=4,
        state=state,
        wave=1,
        waves=2,
        target=pb.Target(all=True),
        counts=counts,
        **more,
    )


def news(state: pb.DeploymentState.ValueType, *nodes: pb.DeploymentNode, **more: Any) -> pb.WatchDeploymentResponse:
    return pb.WatchDeploymentResponse(deployment=deployment(state, **more), nodes=nodes)


def at(name: str, phase: serving_pb2.Phase.ValueType, **more: Any) -> pb.DeploymentNode:
    state = serving_pb2.VersionState(version=4, phase=phase, **more)
    return pb.DeploymentNode(node=name, wave=1, state=state, from_version=3, online=True)


def deploying(shell: Shell, *streams: list[Any]) -> None:
    shell.told.answers["Deploy"] = pb.DeployResponse(deployment=deployment(pb.DEPLOYMENT_STATE_ROLLING))
    shell.told.streams["WatchDeployment"] = list(streams)


async def test_a_deployment_is_followed_to_its_end(shell: Shell) -> None:
    evidence = pb.Evidence(pairs=120, serving_loss=0.01, candidate_loss=0.02, not_worse=3.5, worse=0.2, needed=20)
    deploying(
        shell,
        [
            news(pb.DEPLOYMENT_STATE_SHADOW, at("mec-1", serving_pb2.PHASE_DOWNLOADING, done_bytes=1, total_bytes=2)),
            news(pb.DEPLOYMENT_STATE_SHADOW, evidence=evidence),
            AWAY,
        ],
        [news(pb.DEPLOYMENT_STATE_DONE, at("mec-1", serving_pb2.PHASE_SERVING))],
    )
    ended = await shell(
        "deploy", "joints:4", "--all", "--shadow", "--waves", "50", "--pause", "1m", "--alias", "production"
    )
    assert ended.code == 0, ended
    assert "d-7 joints:4 shadow, wave 1/2, 1 of 2 serving, 1 under way" in ended.out
    assert "mec-1: downloading 50%" in ended.out
    assert "120 pairs: wrong 1.00% before, 2.00% now; not worse 3.5, worse 0.2, either needs 20" in ended.out
    assert "mec-1: serving" in ended.out
    assert "trying again: NOT_READY" in ended.err
    (asked,) = shell.told.asked("Deploy")
    assert (asked.model, asked.version, asked.target.all) == ("joints", 4, True)
    assert list(asked.strategy.wave_percents) == [50, 100]
    assert asked.strategy.pause.seconds == 60
    assert (asked.strategy.alias, asked.strategy.gate.shadow_pairs) == ("production", 100)
    assert asked.created_by


async def test_without_a_trial_hosts_switch_at_once_and_nobody_needs_to_wait(shell: Shell) -> None:
    deploying(shell)
    ended = await shell(
        "deploy", "joints@next", "--site", "A", "--line", "2", "--label", "hall=3", "--detach", "--json"
    )
    assert ended.json["id"] == "d-7"
    (asked,) = shell.told.asked("Deploy")
    assert not asked.strategy.HasField("gate")
    assert (list(asked.target.sites), list(asked.target.lines)) == (["A"], ["2"])
    assert dict(asked.target.labels) == {"hall": "3"}


async def test_a_canary_answers_from_the_first_pair_on(shell: Shell) -> None:
    deploying(shell)
    assert (await shell("deploy", "joints", "--all", "--canary", "--reference", "labels", "--detach")).code == 0
    (asked,) = shell.told.asked("Deploy")
    assert asked.strategy.gate.shadow_pairs == 1
    assert asked.strategy.gate.reference == serving_pb2.TRIAL_REFERENCE_LABELS


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (pb.DEPLOYMENT_STATE_ROLLED_BACK, "d-7 is rolled back: worse by 4 points"),
        (pb.DEPLOYMENT_STATE_PAUSED, "splitmesh deployments resume d-7"),
        (pb.DEPLOYMENT_STATE_SUPERSEDED, "d-7 is superseded"),
    ],
)
async def test_what_did_not_get_there_ends_with_1_and_says_why(
    shell: Shell, state: pb.DeploymentState.ValueType, told: str
) -> None:
    deploying(shell, [news(state, message="worse by 4 points")])
    ended = await shell("deploy", "joints:4", "--all")
    assert ended.code == 1, ended
    assert told in ended.err


async def test_two_ways_of_beginning_are_a_mistake_and_so_is_no_host(shell: Shell) -> None:
    assert (await shell("deploy", "joints:4", "--all", "--now", "--shadow")).code == 2
    assert "say which hosts" in refused(await shell("deploy", "joints:4"), "FIELD_INVALID")
    assert not shell.told.requests


async def test_a_refusal_of_the_fleet_is_one_line(shell: Shell) -> None:
    shell.told.answers["Deploy"] = MeshError(Reason.NODE_NOT_FOUND, "the target names no host")
    assert "names no host" in refused(await shell("deploy", "joints:4", "--node", "x"), "NODE_NOT_FOUND")


async def test_a_rollback_is_followed_until_all_is_back(shell: Shell) -> None:
    shell.told.answers["Rollback"] = pb.RollbackResponse(deployment=deployment(pb.DEPLOYMENT_STATE_ROLLING_BACK))
    back = pb.DeploymentNode(node="mec-1", from_version=3, rolled_back=True)
    shell.told.streams["WatchDeployment"] = [[news(pb.DEPLOYMENT_STATE_ROLLED_BACK, back)]]
    ended = await shell("rollback", "joints", "--reason", "misses bridges")
    assert ended.code == 0, ended
    assert "mec-1: back at 3" in ended.out
    (asked,) = shell.told.asked("Rollback")
    assert (asked.model, asked.id, asked.reason) == ("joints", "", "misses bridges")
    assert (await shell("rollback")).code == 2
    assert (await shell("rollback", "joints", "--deployment", "d-7")).code == 2


async def test_a_following_program_gets_json_lines(shell: Shell) -> None:
    shell.told.streams["WatchDeployment"] = [
        [news(pb.DEPLOYMENT_STATE_ROLLING, at("mec-1", serving_pb2.PHASE_LOADING)), news(pb.DEPLOYMENT_STATE_DONE)]
    ]
    first, second = (await shell("deployments", "watch", "d-7", "--json")).lines
    assert (first["deployment"]["state"], first["nodes"][0]["progress"]["phase"]) == ("ROLLING", "LOADING")
    assert second["deployment"]["state"] == "DONE"


async def test_deployments_are_listed_shown_paused_and_resumed(shell: Shell) -> None:
    paused = deployment(pb.DEPLOYMENT_STATE_PAUSED, resumes=pb.DEPLOYMENT_STATE_CANARY, message="nothing shown")
    shell.told.answers |= {
        "ListDeployments": pb.ListDeploymentsResponse(deployments=[paused]),
        "GetDeployment": pb.GetDeploymentResponse(
            deployment=paused, nodes=[at("mec-1", serving_pb2.PHASE_FAILED, reason="SIGNATURE_MISSING")]
        ),
        "PauseDeployment": pb.PauseDeploymentResponse(deployment=paused),
        "ResumeDeployment": pb.ResumeDeploymentResponse(deployment=deployment(pb.DEPLOYMENT_STATE_ROLLING)),
    }
    bare, listed = await shell("deployments"), await shell("deployments", "list", "joints", "--limit", 1)
    assert bare.code == listed.code == 0, (bare, listed)
    assert "paused (canary)" in bare.out
    assert shell.told.asked("ListDeployments")[-1].model == "joints"
    assert (await shell("deployments", "--json")).json[0]["id"] == "d-7"
    shown = await shell("deployments", "show", "d-7")
    assert "SIGNATURE_MISSING" in shown.out
    assert "nothing shown" in shown.out
    assert (await shell("deployments", "pause", "d-7", "--reason", "holiday")).code == 0
    assert shell.told.asked("PauseDeployment")[0].reason == "holiday"
    assert (await shell("deployments", "resume", "d-7", "--promote")).code == 0
    assert shell.told.asked("ResumeDeployment")[0].promote


def host() -> pb.Node:
    chosen = serving_pb2.BackendCandidate(
        backend="openvino-cpu", precision="fp32", threads=2, p99_ms=4.5, frames_per_s=90
    )
    slower = serving_pb2.BackendCandidate(backend="onnxruntime-cpu", precision="fp32", threads=1, frames_per_s=50)
    wanted = serving_pb2.VersionState(
        version=4,
        phase=serving_pb2.PHASE_SERVING,
        backend=serving_pb2.BackendChoice(chosen=chosen, candidates=[slower, chosen]),
    )
    return pb.Node(
        node="mec-1",
        site="A",
        line="2",
        camera_groups=["cams"],
        labels={"hall": "3"},
        state=pb.NODE_STATE_ONLINE,
        capabilities=pb.Capabilities(
            cores=4,
            memory_bytes=8 << 30,
            backends=[pb.Backend(name="tensorrt", unusable="no GPU"), pb.Backend(name="openvino-cpu", version="1")],
        ),
        metrics=pb.Heartbeat(spooled_records=17),
        serving=[serving_pb2.ServingState(model="joints", active_version=4, wanted=wanted)],
        warning="two agents have this name",
    )


async def test_hosts_are_listed_and_shown(shell: Shell) -> None:
    shell.told.answers |= {
        "ListNodes": pb.ListNodesResponse(nodes=[host()]),
        "GetNode": pb.GetNodeResponse(node=host()),
    }
    listed = await shell("nodes", "--site", "A", "--state", "online", "--json")
    (node,) = listed.json
    assert (node["node"], node["state"], node["metrics"]["spooled_records"]) == ("mec-1", "ONLINE", 17)
    assert list(shell.told.asked("ListNodes")[0].target.sites) == ["A"]
    table = (await shell("nodes")).out
    for text in ("mec-1", "8.0 GiB", "openvino-cpu fp32", "joints:4 serving", "17"):
        assert text in table
    assert not shell.told.asked("ListNodes")[-1].HasField("target")
    shown = (await shell("nodes", "show", "mec-1")).out
    for text in ("hall=3", "no GPU", "chosen", "slower", "warning: two agents have this name"):
        assert text in shown
    shell.told.answers["ListNodes"] = pb.ListNodesResponse()
    assert "no host" in (await shell("nodes")).out


async def test_hosts_are_labelled_forgotten_and_given_a_policy(shell: Shell) -> None:
    shell.told.answers |= {
        "SetNodeLabels": pb.SetNodeLabelsResponse(node=host()),
        "RemoveNode": MeshError(Reason.NODE_ONLINE, "its agent is connected"),
        "SetHostPolicy": pb.SetHostPolicyResponse(nodes=["mec-1"]),
    }
    assert "hall=3" in (await shell("nodes", "label", "mec-1", "hall=3", "old=")).out
    assert dict(shell.told.asked("SetNodeLabels")[0].labels) == {"hall": "3", "old": ""}
    refused(await shell("nodes", "remove", "mec-1"), "NODE_ONLINE")
    told = await shell("nodes", "policy", "--site", "A", "--app", "joints=priority:5,cpu:2", "--memory", "4GiB")
    assert told.code == 0, told
    assert "site A: 1 hosts have the policy from now on: mec-1" in told.out
    assert shell.told.asked("SetHostPolicy")[0].policy.memory_bytes == 4 << 30
    assert "say which hosts" in refused(await shell("nodes", "policy", "--app", "joints"), "FIELD_INVALID")


def task(state: pb.TaskState.ValueType, **more: Any) -> pb.Task:
    return pb.Task(
        id="t-1", kind=pb.TASK_KIND_PROFILE, node="mec-1", state=state, attempt=1, max_attempts=3,
        profile=pb.ProfileWork(model="joints", version=4), **more,
    )  # fmt: skip


async def test_a_task_is_made_followed_and_its_end_is_the_command_s(shell: Shell) -> None:
    shell.told.answers["SubmitTask"] = pb.SubmitTaskResponse(task=task(pb.TASK_STATE_QUEUED))
    running = task(pb.TASK_STATE_RUNNING, progress=pb.TaskProgress(phase="timing", share=0.5))
    done = task(pb.TASK_STATE_DONE, result={"profile": "joints-4-mec-1"})
    failed = task(pb.TASK_STATE_FAILED, reason="HOST_TOO_SMALL", message="needs 9 GiB")
    for last, code in ((done, 0), (failed, 1)):
        shell.told.streams["WatchTask"] = [[pb.WatchTaskResponse(task=one) for one in (running, last)]]
        ended = await shell("tasks", "profile", "joints:4", "--node", "mec-1", "--budget", "1m")
        assert ended.code == code, ended
        assert "t-1: running, on mec-1, 50% timing" in ended.out
        assert ("profile joints-4-mec-1" if code == 0 else "HOST_TOO_SMALL: needs 9 GiB") in ended.out
    assert shell.told.asked("SubmitTask")[0].profile.budget_s == 60
    assert (await shell("tasks", "profile", "joints:4", "--node", "a", "--site", "A")).code == 2
    assert "say which hosts" in refused(await shell("tasks", "collect", "hard"), "FIELD_INVALID")


async def test_tasks_are_listed_shown_and_cancelled(shell: Shell) -> None:
    shell.told.answers |= {
        "ListTasks": pb.ListTasksResponse(tasks=[task(pb.TASK_STATE_QUEUED, message="mec-1 is offline")]),
        "CancelTask": pb.CancelTaskResponse(task=task(pb.TASK_STATE_CANCELLED)),
    }
    shell.told.streams["WatchTask"] = [[pb.WatchTaskResponse(task=task(pb.TASK_STATE_QUEUED))]]
    assert "mec-1 is offline" in (await shell("tasks")).out
    listed = await shell("tasks", "list", "--node", "mec-1", "--state", "queued", "--kind", "profile", "--json")
    assert listed.json[0]["what"] == "joints:4"
    asked = shell.told.asked("ListTasks")[-1]
    assert (asked.node, list(asked.states), asked.kind) == ("mec-1", [pb.TASK_STATE_QUEUED], pb.TASK_KIND_PROFILE)
    assert (await shell("tasks", "show", "t-1", "--json")).json["state"] == "QUEUED"
    assert "cancelled" in (await shell("tasks", "cancel", "t-1")).out


async def test_done_without_a_host_that_serves_is_no_success(shell: Shell) -> None:
    nobody = pb.Deployment(
        id="d-7",
        model="joints",
        version=4,
        state=pb.DEPLOYMENT_STATE_DONE,
        counts=pb.DeploymentCounts(total=2, offline=2),
    )
    deploying(shell, [pb.WatchDeploymentResponse(deployment=nobody)], [pb.WatchDeploymentResponse(deployment=nobody)])
    for command in (("deploy", "joints:4", "--all"), ("deployments", "watch", "d-7")):
        ended = await shell(*command)
        assert ended.code == 1, ended
        assert "d-7 is done, and no host serves joints:4" in ended.err


@pytest.mark.parametrize("option", ["--margin", "--alpha", "--canary-share", "--pair-share"])
async def test_0_is_refused_where_it_would_mean_another_number(shell: Shell, option: str) -> None:
    deploying(shell)
    for number, code in (("0", 2), ("nan", 2), ("0.001", 0)):
        ended = await shell("deploy", "joints:4", "--all", "--shadow", "--detach", option, number)
        assert ended.code == code, ended
    assert len(shell.told.asked("Deploy")) == 1
