"""What an agent's profile and collect tasks do for real: with a registry, pieces that are timed, samples that a head keeps."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edge.agent.app import build
from edge.agent.config import AgentSettings
from edge.head.config import HeadSettings
from edge.head.samples.servicer import SampleServicer
from edge.head.samples.servicer import binding as samples_binding
from splitmesh.api.fleet.v1 import fleet_pb2 as pb
from splitmesh.api.segment.v1 import segment_pb2, segment_pb2_grpc
from splitmesh.client.datasets import DatasetClient
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.lifecycle import App, Host, Kernel
from splitmesh.kernel.profiling import PieceTimer
from splitmesh.kernel.server import Binding
from splitmesh.model.manifest import WHOLE
from splitmesh.model.profile import profile_cuts
from splitmesh.model.profile_data import Profile, ProfileKey
from splitmesh.runtime.ort import CPU
from splitmesh.samples.store import SampleStore
from tests.integration.registry_world import World
from tests.integration.registry_world import running as registry_running
from tests.support import fake_fleet, fake_serving
from tests.support.fake_fleet import FakeFleet
from tests.support.fake_serving import FakeServing
from tests.support.models import CUT, split_version, whole_model
from tests.unit.sample_records import ROOMY, add

DONE, FAILED = pb.TASK_STATE_DONE, pb.TASK_STATE_FAILED
RULES = """schema_version: 1
manifests: [boards]
pictures:
  - datasets: [boards]
    labels: [bad]
    share: whole
"""


class Timing(segment_pb2_grpc.SegmentServiceServicer):
    """A head's way to time pieces."""

    def __init__(self, settings: HeadSettings) -> None:
        self._node = settings.node
        self._timer = PieceTimer(settings, 1, CPU)

    async def Describe(self, request: segment_pb2.DescribeRequest, context: Any) -> segment_pb2.DescribeResponse:
        return segment_pb2.DescribeResponse(node=self._node, threads=1, backend=CPU)

    async def Run(self, request_iterator: Any, context: Any) -> AsyncIterator[segment_pb2.RunResponse]:
        """Nothing is run here."""
        raise MeshError(Reason.UNIMPLEMENTED, "runs nothing")
        yield

    async def Profile(self, request_iterator: Any, context: Any) -> segment_pb2.ProfileResponse:
        return await self._timer.serve(aiter(request_iterator))


def head_of(settings: HeadSettings, kernel: Kernel) -> App:
    """What an agent's tasks ask of a head: samples, pieces to be timed, what it serves."""
    samples, serving, timing = SampleServicer(settings), FakeServing(settings.node), Timing(settings)
    return App(
        "head",
        [
            samples_binding(samples),
            Binding(fake_serving.SERVICE, lambda server: fake_serving.add(server, serving)),
            Binding(
                fake_serving.SEGMENT_SERVICE,
                lambda server: segment_pb2_grpc.add_SegmentServiceServicer_to_server(timing, server),
            ),
        ],
        parts=[samples],
    )


@dataclass
class Site:
    """A registry, a fleet, and one host with a head and an agent."""

    folder: Path
    registry: World
    fleet: FakeFleet
    stack: AsyncExitStack

    async def head(self, **fields: Any) -> SampleStore:
        """A head, and the store that it would write into; an agent beside it."""
        told = HeadSettings(data_dir=self.folder / "head", node="mec-1", site="lyon", drain_s=1.0, **fields)
        store = self.stack.enter_context(SampleStore(told.data_dir / "samples", ROOMY))
        host = await self.stack.enter_async_context(Host("head", told, head_of))
        await self.agent(f",head={host.address}")
        return store

    async def agent(self, more: str = "", *, sharing: Path | None = None) -> None:
        rules = self.folder / "rules.yaml"
        rules.write_text(RULES)
        settings = AgentSettings(
            data_dir=self.folder / "agent",
            datasets_dir=self.folder / "datasets",
            sharing=sharing or rules,
            node="mec-1",
            static_addresses=f"fleet={self.fleet.address},registry={self.registry.address}{more}",
        )
        await self.stack.enter_async_context(Host("agent", settings, build))
        await self.fleet.until(lambda: bool(self.fleet.sessions))

    async def end_of(self, task: pb.Task) -> pb.TaskUpdate:
        await self.fleet.offer(task)
        await self.fleet.until(lambda: task.id in self.fleet.ended)
        return self.fleet.ended[task.id]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with AsyncExitStack() as stack:
        registry = await stack.enter_async_context(registry_running(tmp_path / "registry"))
        fleet = await stack.enter_async_context(fake_fleet.served(FakeFleet()))
        yield Site(tmp_path, registry, fleet, stack)


def profile_task(version: int, model: str = "parts", task_id: str = "p") -> pb.Task:
    work = pb.ProfileWork(model=model, version=version, budget_s=3.0)
    return pb.Task(id=task_id, kind=pb.TASK_KIND_PROFILE, attempt=1, profile=work)


def collect_task(task_id: str = "c", **fields: Any) -> pb.Task:
    work = pb.CollectWork(dataset="boards", **fields)
    return pb.Task(id=task_id, kind=pb.TASK_KIND_COLLECT, attempt=1, collect=work)


async def test_a_version_is_timed_on_this_hosts_head_and_its_profile_is_in_the_registry(site: Site) -> None:
    await site.head()
    client = site.registry.client
    info = await client.create_version("parts", split_version(), created_by="test")
    end = await site.end_of(profile_task(info.version))
    assert end.state == DONE, end.message
    assert (end.result["node"], end.result["backend"], end.result["cuts"]) == ("mec-1", CPU, "0")
    (made,) = await client.list_profiles("parts", info.version)
    assert made.key == ProfileKey(node="mec-1", backend=CPU, threads=1, batch=1)
    assert made.whole_ms > 0
    assert (made.cuts, made.complete, made.sha256) == ((), False, end.result["sha256"])


async def test_with_a_profile_of_another_node_every_cut_has_times_and_only_the_versions_own_is_measured(
    site: Site,
) -> None:
    await site.head()
    client = site.registry.client
    info = await client.create_version("parts", split_version(), created_by="test")
    elsewhere = profile_cuts(whole_model(), budget_s=1.0)
    slow = elsewhere.model_copy(
        update={"key": ProfileKey(node="lab", backend=CPU, threads=1), "whole_ms": 1000.0, "whole_p90_ms": 1000.0}
    )
    await client.put_profile("parts", info.version, slow)
    assert (await site.end_of(profile_task(info.version))).state == DONE
    (made,) = [one for one in await client.list_profiles("parts", info.version) if one.key.node == "mec-1"]
    assert [cut.tensors for cut in made.cuts] == [cut.tensors for cut in slow.cuts]
    assert [cut.tensors for cut in made.cuts if cut.measured] == [(CUT,)]
    pace = made.whole_ms / slow.whole_ms
    for cut, there in zip(made.cuts, slow.cuts, strict=True):
        if not cut.measured:
            assert cut.head_ms == pytest.approx(there.head_ms * pace)
    assert Profile.from_json(made.to_json()) == made


@pytest.mark.parametrize(
    ("model", "version", "reason"),
    [("nothing", 1, "MODEL_NOT_FOUND"), ("parts", 99, "VERSION_NOT_FOUND")],
)
async def test_a_version_that_is_not_there_cannot_be_timed(site: Site, model: str, version: int, reason: str) -> None:
    await site.head()
    await site.registry.client.create_version("parts", split_version(), created_by="test")
    end = await site.end_of(profile_task(version, model))
    assert (end.state, end.reason, end.retry) == (FAILED, reason, False)


async def test_without_a_head_there_is_nothing_to_time_on_and_trying_again_may_help(site: Site) -> None:
    await site.agent()
    info = await site.registry.client.create_version("parts", split_version(), created_by="test")
    assert WHOLE in info.artifacts
    for task in (profile_task(info.version), collect_task()):
        end = await site.end_of(task)
        assert (end.state, end.reason, end.retry) == (FAILED, "SERVICE_UNAVAILABLE", True)


async def test_labelled_samples_become_a_version_and_only_what_the_site_lets_go_leaves(site: Site) -> None:
    store = await site.head(sample_sharing="picture")
    for n in range(12):
        record = add(store, 60 * n)
        store.label(record.id, "bad" if n % 2 else "good", "ana", record.captured_at)
    end = await site.end_of(collect_task())
    assert end.state == DONE, end.message
    assert dict(end.result) == {
        **{"dataset": "boards", "version": "1", "samples": "12", "pictures": "12"},
        **{"lost": "0", "sent": "6", "stayed": "6"},
    }
    info = await DatasetClient(site.registry.channels).get("boards", 1, count_pictures=True)
    assert (info.created_by, info.pictures, info.pictures_here) == ("agent mec-1", 12, 6)
    assert '"pushed"' in (site.folder / "datasets" / "sync.jsonl").read_text()


async def test_the_same_samples_collected_again_by_the_same_task_make_no_second_version(site: Site) -> None:
    store = await site.head(sample_sharing="picture")
    for n in range(6):
        record = add(store, 60 * n)
        store.label(record.id, "bad", "ana", record.captured_at)
    first = await site.end_of(collect_task())
    again = collect_task()
    again.attempt = 2
    del site.fleet.ended["c"]
    second = await site.end_of(again)
    assert (first.attempt, second.attempt) == (1, 2)
    assert first.result["version"] == second.result["version"] == "1"
    assert second.result["sent"] == "0"


async def test_unlabelled_samples_count_by_the_full_models_answer_when_they_are_asked_for(site: Site) -> None:
    store = await site.head(sample_sharing="picture")
    for n in range(6):
        add(store, 60 * n, tail_label="bad", tail_confidence=0.9, model="parts" if n < 5 else "other")
    add(store, 6000, model="parts", tail_label=None, tail_confidence=None)
    refused = await site.end_of(collect_task("labelled"))
    assert (refused.state, refused.reason) == (FAILED, "CALIBRATION_INSUFFICIENT")
    end = await site.end_of(collect_task("all", unlabelled=True, models=["parts"], max_samples=4))
    assert end.state == DONE, end.message
    assert (end.result["samples"], end.result["sent"]) == ("4", "4")
    datasets = DatasetClient(site.registry.channels)
    made = await datasets.manifest(await datasets.get("boards"))
    assert all((entry.labelled_by or "").startswith("full model parts:") for entry in made.entries)


async def test_a_head_that_keeps_its_pictures_to_itself_is_not_asked_around(site: Site) -> None:
    store = await site.head()
    for n in range(6):
        record = add(store, 60 * n)
        store.label(record.id, "bad", "ana", record.captured_at)
    end = await site.end_of(collect_task())
    assert (end.state, end.reason, end.retry) == (FAILED, "CONTENT_NOT_ALLOWED", False)
    assert not list((site.folder / "datasets").rglob("manifests/*/*"))


async def test_rules_that_cannot_be_read_let_nothing_go(site: Site) -> None:
    await site.agent(sharing=site.folder / "none.yaml")
    end = await site.end_of(collect_task())
    assert (end.state, end.reason) == (FAILED, "FIELD_INVALID")
