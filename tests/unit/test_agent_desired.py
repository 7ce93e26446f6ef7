"""What a host is to serve, on disk and bounded: assignments that ended give way, those that hold do not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.agent import desired as desired_module
from edge.agent.config import AgentSettings
from edge.agent.desired import Desired
from edge.agent.store import AgentStore
from services.fleet.messages import check_hello
from splitmesh.api.fleet.v1 import fleet_pb2 as pb
from splitmesh.api.serving.v1 import serving_pb2
from splitmesh.client.fleet_bounds import MAX_HELD
from splitmesh.errors import MeshError, Reason


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AgentStore]:
    monkeypatch.setattr(desired_module, "MAX_MODELS", 3)
    made = AgentStore(tmp_path)
    made.open()
    yield made
    made.close()


def order(model: str, version: int, generation: int = 1) -> serving_pb2.Assignment:
    """Without a version: the assignments end."""
    return serving_pb2.Assignment(model=model, version=version, generation=generation)


async def kept(store: AgentStore) -> list[str]:
    """As another life finds it."""
    again = Desired(store)
    await again.load()
    return list(again.assignments)


async def test_for_a_new_model_the_assignment_that_ended_first_is_forgotten(store: AgentStore) -> None:
    desired = Desired(store)
    for model in ("a", "b", "c"):
        await desired.assign(order(model, 1))
    for model in ("c", "a"):
        await desired.assign(order(model, 0, 2))
    await desired.assign(order("d", 1))
    assert list(desired.assignments) == await kept(store) == ["b", "a", "d"]
    # A life that only reads forgets in the same order.
    desired = Desired(store)
    await desired.load()
    await desired.assign(order("e", 1))
    assert list(desired.assignments) == await kept(store) == ["b", "d", "e"]


async def test_assignments_that_hold_are_never_forgotten(store: AgentStore) -> None:
    desired = Desired(store)
    for model in ("a", "b", "c"):
        await desired.assign(order(model, 1))
    with pytest.raises(MeshError) as refused:
        await desired.assign(order("d", 1))
    assert refused.value.reason is Reason.QUEUE_FULL
    await desired.assign(order("a", 2, 2))
    assert sorted(await kept(store)) == ["a", "b", "c"]


async def test_what_ended_is_remembered_while_there_is_room(store: AgentStore) -> None:
    desired = Desired(store)
    await desired.assign(order("a", 0, 2))
    with pytest.raises(MeshError) as refused:
        await desired.assign(order("a", 1, 1))
    assert refused.value.reason is Reason.CANCELLED


def test_an_agent_may_hold_no_more_tasks_than_a_hello_may_name(tmp_path: Path) -> None:
    assert AgentSettings(data_dir=tmp_path, max_held_tasks=MAX_HELD).max_held_tasks == MAX_HELD
    with pytest.raises(ValueError, match="max_held_tasks"):
        AgentSettings(data_dir=tmp_path, max_held_tasks=MAX_HELD + 1)
    hello = pb.Hello(node="n", boot_id="b", held=[pb.HeldTask(task_id=f"t-{n}", attempt=1) for n in range(MAX_HELD)])
    assert check_hello(hello) is hello
