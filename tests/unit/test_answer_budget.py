"""A hard frame for which there is no budget: who answers in the tail's place, and what the answer says."""

from __future__ import annotations

import asyncio

import pytest

from splitmesh.client import AnsweredBy, Why
from splitmesh.errors import MeshError, Reason
from splitmesh.routing.gate import ESCALATE_ALL, Gate
from tests.support.answering import CLOUD_MS, head
from tests.support.models import EASY, HARD, HARD_EXIT_LABEL, HARD_LABEL, LABELS, split_version

SPENT = "the site's 20000 bytes/s are taken by worthier samples"
WAIT_S = 5.0


async def test_the_exit_answers_and_says_what_was_refused() -> None:
    async with head() as edge:
        edge.budget.refusal = SPENT
        answer = await edge.infer(HARD)
    assert (answer.answered_by, answer.fallback_reason) == (AnsweredBy.EDGE_FALLBACK, Reason.BUDGET_SPENT)
    assert answer.row is not None
    assert LABELS[int(answer.row.argmax())] == HARD_EXIT_LABEL
    assert answer.routing is not None
    assert (answer.routing.why, answer.routing.refused) == (Why.UNSURE, SPENT)
    assert (answer.uplink_bytes, edge.tail.frames, edge.budget.crossings) == (0, [], [])
    assert edge.counts.of == {"fallback BUDGET_SPENT": 1}
    (told,) = edge.watchers[0].told
    assert (told.tail, told.answer.exit) == (None, 0)


async def test_the_whole_model_answers_where_it_is_a_way() -> None:
    async with head(whole=True) as edge:
        edge.budget.refusal = SPENT
        answer = await edge.infer(HARD)
    assert (answer.answered_by, answer.fallback_reason) == (AnsweredBy.EDGE_WHOLE, Reason.BUDGET_SPENT)
    assert answer.row is not None
    assert LABELS[int(answer.row.argmax())] == HARD_LABEL
    assert answer.active.info.version == 2
    assert answer.routing is not None
    assert answer.routing.refused == SPENT
    (told,) = edge.watchers[0].told
    assert (told.active.info.version, told.answer) == (1, answer)


async def test_without_an_exit_and_another_way_the_frame_is_refused_and_may_be_tried_again() -> None:
    async with head(split_version()) as edge:
        edge.budget.refusal = SPENT
        with pytest.raises(MeshError) as caught:
            await edge.infer(HARD)
    assert (caught.value.reason, caught.value.message) == (Reason.BUDGET_SPENT, SPENT)
    assert caught.value.retry_after_s
    assert edge.counts.of == {"refused BUDGET_SPENT": 1}
    assert not edge.watchers[0].told


async def test_outputs_that_an_exit_cannot_give_are_refused_too() -> None:
    async with head() as edge:
        edge.budget.refusal = SPENT
        with pytest.raises(MeshError) as caught:
            await edge.infer(EASY, outputs_needed=True)
    assert caught.value.reason is Reason.BUDGET_SPENT
    assert [worth for _, worth, _ in edge.budget.asked] == [1.0]


async def test_sure_answers_ask_for_no_budget() -> None:
    async with head() as edge:
        edge.budget.refusal = SPENT
        answer = await edge.infer(EASY)
    assert (answer.answered_by, edge.budget.asked) == (AnsweredBy.EDGE_EXIT, [])


async def test_what_fails_on_its_way_is_not_told_as_crossed_or_refused() -> None:
    async with head(gate=Gate(ESCALATE_ALL)) as edge:
        edge.tail.fails = MeshError(Reason.DEADLINE_EXPIRED, "late")
        answer = await edge.infer(HARD)
    assert answer.routing is not None
    assert (answer.fallback_reason, answer.routing.refused) == (Reason.DEADLINE_EXPIRED, "")
    assert (len(edge.budget.asked), edge.budget.crossings) == (1, [])


async def test_of_a_batch_a_frame_takes_its_part_of_the_tails_time() -> None:
    async with head(gate=Gate(ESCALATE_ALL)) as edge:
        edge.tail.batch = 4
        await edge.infer(HARD)
    assert edge.budget.crossings == [("parts", CLOUD_MS / 4)]


async def test_what_cannot_be_sent_takes_nothing_of_the_budget() -> None:
    async with head(gate=Gate(ESCALATE_ALL)) as edge:
        edge.tail.available = False
        answer = await edge.infer(HARD)
    assert answer.fallback_reason is Reason.SERVICE_UNAVAILABLE
    assert (edge.budget.asked, edge.tail.frames) == ([], [])


@pytest.mark.parametrize("room", [True, False])
async def test_a_shadow_frame_crosses_only_where_there_is_room(room: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async with head() as edge:
        monkeypatch.setattr(edge.ways, "shadow_due", lambda: edge.active)
        edge.budget.room = room
        await edge.infer(EASY)
        await asyncio.sleep(0)  # it begins after the answer
        async with asyncio.timeout(WAIT_S):
            await edge.active.wait_unused()
    ((model, size),) = edge.budget.spared
    assert model == "parts"
    assert [len(frame.payload) for frame in edge.tail.frames] == [size] * room
    assert len(edge.watchers[0].told) == 1
