"""What waits to be said to the fleet: bounded messages, and an order in which nothing that was said last is taken away."""

from __future__ import annotations

import pytest

from edge.agent import outbox as outbox_module
from edge.agent.outbox import Outbox
from splitmesh.api.fleet.v1 import fleet_pb2 as pb
from splitmesh.api.serving.v1 import serving_pb2

Key = tuple[str, str]


def state(model: str, node: str) -> serving_pb2.ServingState:
    return serving_pb2.ServingState(model=model, node=node, active_version=1)


async def said(outbox: Outbox) -> list[pb.ServingUpdate]:
    """All that waits, message by message."""
    outbox.heartbeat(pb.Heartbeat())
    assert (await outbox.next()).HasField("heartbeat")
    outbox.capabilities(pb.Capabilities())
    found = []
    while (message := await outbox.next()).HasField("serving"):
        found.append(message.serving)
    return found


def known(updates: list[pb.ServingUpdate], before: set[Key]) -> set[Key]:
    """What a fleet makes of it: first what is gone, then what is there."""
    for update in updates:
        before = {key for key in before if key[0] not in update.gone}
        before |= {(one.model, one.node) for one in update.states}
    return before


async def test_a_model_that_is_served_again_takes_nothing_along_of_who_served_it_before() -> None:
    outbox = Outbox(lambda _task_id: None)
    outbox.serving([], ["m"])
    outbox.serving([state("m", "new")], [])
    assert known(await said(outbox), {("m", "old")}) == {("m", "new")}


async def test_messages_are_bounded_and_no_state_goes_before_the_word_that_its_model_was_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outbox_module, "AT_ONCE", 2)
    outbox = Outbox(lambda _task_id: None)
    models = [f"m-{n}" for n in range(5)]
    outbox.serving([], models)
    outbox.serving([state(model, "new") for model in reversed(models)], [])
    updates = await said(outbox)
    assert all(len(one.states) <= 2 and len(one.gone) <= 2 for one in updates)
    assert known(updates, {(model, "old") for model in models}) == {(model, "new") for model in models}
