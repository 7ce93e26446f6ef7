"""What versions may take of a host's memory."""

from __future__ import annotations

import pytest

from edge.head.memory import HostMemory
from edge.head.serving.host_policy import HostPolicy, HostShare
from splitmesh.errors import MeshError, Reason

LIMITS = HostPolicy(generation=1, shares={"a": HostShare(memory_bytes=100)}, memory_bytes=150)


def test_without_limits_nothing_is_refused() -> None:
    memory = HostMemory()
    memory.room("a").need(1 << 50)
    assert memory.used["a"] == 1 << 50


@pytest.mark.parametrize(("model", "fits", "too_much", "limit"), [("a", 60, 61, "100"), ("b", 110, 111, "150")])
def test_a_version_beyond_its_models_or_the_hosts_limit_is_refused_and_counts_as_before(
    model: str, fits: int, too_much: int, limit: str
) -> None:
    memory = HostMemory(lambda: LIMITS)
    memory.room("a").need(40)
    room = memory.room(model)
    with pytest.raises(MeshError) as caught:
        room.need(too_much)
    assert caught.value.reason is Reason.HOST_TOO_SMALL
    assert caught.value.metadata["limit_bytes"] == limit
    assert memory.used.total() == 40
    room.need(fits)
    assert memory.used.total() == 40 + fits


def test_an_estimate_is_replaced_by_the_next_and_what_is_given_back_is_there_for_others() -> None:
    memory = HostMemory(lambda: LIMITS)
    room = memory.room("a")
    room.need(90)
    room.need(100)
    assert memory.used["a"] == 100, "not 190"
    with pytest.raises(MeshError, match="versions of a"):
        room.need(101)
    room.give_back()
    room.give_back()
    assert memory.used["a"] == 0
    room.need(50)
    assert memory.used["a"] == 0, "it is over"
    memory.room("a").need(100)


def test_a_limit_below_what_is_taken_refuses_what_is_new_and_throws_nothing_out() -> None:
    policy = HostPolicy()
    memory = HostMemory(lambda: policy)
    room = memory.room("a")
    room.need(200)
    policy = LIMITS
    room.need(180)
    assert memory.used["a"] == 180
    with pytest.raises(MeshError):
        memory.room("b").need(1)
