"""What may become of a task."""

from __future__ import annotations

import pytest

from services.fleet.tasks import lease
from services.fleet.tasks.lease import CANCELLED, DONE, ENDED, FAILED, OFFERED, QUEUED, RUNNING, SUPERSEDED, Heard
from splitmesh.api.fleet.v1 import fleet_pb2 as pb


def task(
    state: pb.TaskState.ValueType, attempt: int = 1, node: str = "edge-1", *, bound: bool = True, most: int = 3
) -> pb.Task:
    made = pb.Task(id="t", state=state, attempt=attempt, max_attempts=most, node=node)
    if not bound:
        made.target.all = True
    return made


def said(state: pb.TaskState.ValueType, attempt: int = 1, *, retry: bool = False) -> pb.TaskUpdate:
    return pb.TaskUpdate(task_id="t", attempt=attempt, state=state, message="so", reason="R", retry=retry)


@pytest.mark.parametrize("before", [OFFERED, RUNNING, QUEUED])
@pytest.mark.parametrize(
    ("says", "retry", "after"),
    [
        (RUNNING, False, RUNNING),
        (DONE, False, DONE),
        (FAILED, False, FAILED),
        (FAILED, True, QUEUED),
        (CANCELLED, False, CANCELLED),
    ],
)
def test_the_last_try_of_a_task_is_heard_also_after_its_lease_ran_out(
    before: pb.TaskState.ValueType, says: pb.TaskState.ValueType, retry: bool, after: pb.TaskState.ValueType
) -> None:
    one = task(before)
    expected = Heard.RENEWED if before == says == RUNNING else Heard.CHANGED
    assert lease.hear(one, "edge-1", said(says, retry=retry)) is expected
    assert (one.state, one.attempt) == (after, 1)


@pytest.mark.parametrize("before", ENDED)
@pytest.mark.parametrize("says", [RUNNING, DONE, FAILED, CANCELLED])
def test_what_has_ended_stays_as_it_is(before: pb.TaskState.ValueType, says: pb.TaskState.ValueType) -> None:
    one = task(before)
    assert lease.hear(one, "edge-1", said(says)) is Heard.OLD
    assert one == task(before)


@pytest.mark.parametrize(
    ("one", "node", "attempt"),
    [
        (task(RUNNING, 2), "edge-1", 1),
        (task(RUNNING, 2), "edge-1", 3),
        (task(RUNNING), "edge-2", 1),
        (task(QUEUED), "edge-2", 1),
        (task(QUEUED, 0), "edge-1", 0),
        (task(OFFERED, 1, "edge-1", bound=False), "edge-2", 1),
    ],
    ids=["older", "newer", "other", "other-bound", "never-offered", "other-unbound"],
)
def test_an_older_try_or_another_host_is_neither_heard_nor_resumed(one: pb.Task, node: str, attempt: int) -> None:
    before = one.SerializeToString(deterministic=True)
    assert lease.hear(one, node, said(DONE, attempt)) is Heard.OLD
    assert not lease.resume(one, node, attempt)
    assert one.SerializeToString(deterministic=True) == before


def test_a_task_that_nobody_else_got_meanwhile_is_resumed_by_the_host_that_had_it() -> None:
    one = task(RUNNING, bound=False)
    lease.lose(one, "silence")
    assert (one.state, one.node) == (QUEUED, "")
    assert lease.resume(one, "edge-1", 1)
    assert (one.state, one.node, one.attempt) == (RUNNING, "edge-1", 1)


def test_a_lost_task_of_one_host_waits_for_it_and_one_of_many_fails_after_its_tries() -> None:
    own, many = task(RUNNING, 3), task(RUNNING, 3, bound=False)
    lease.lose(own, "silence")
    lease.lose(many, "silence")
    assert (own.state, own.node, lease.is_exhausted(own)) == (QUEUED, "edge-1", True)
    assert (many.state, many.reason, many.message) == (FAILED, "DEADLINE_EXPIRED", "3 tries: silence")


def test_each_offer_is_another_try_and_forgets_what_the_last_one_said() -> None:
    one = task(RUNNING, 1)
    one.progress.share = 0.7
    lease.hear(one, "edge-1", said(FAILED, retry=True))
    assert (one.reason, one.message) == ("R", "so")
    lease.offer(one, "edge-1")
    assert (one.state, one.attempt, one.message, one.HasField("progress")) == (OFFERED, 2, "", False)


def test_the_last_try_may_not_be_repeated() -> None:
    one = task(RUNNING, 3)
    lease.hear(one, "edge-1", said(FAILED, 3, retry=True))
    assert (one.state, one.reason) == (FAILED, "R")


def test_rests_grow_up_to_a_bound() -> None:
    assert [lease.rest_s(attempt) for attempt in (1, 2, 3, 99)] == [2.0, 4.0, 8.0, 300.0]


def test_a_superseded_task_has_no_lease() -> None:
    one = task(RUNNING)
    one.lease_time.FromSeconds(9)
    lease.end(one, SUPERSEDED, "newer")
    assert (one.state, one.HasField("lease_time")) == (SUPERSEDED, False)
