"""Those who follow drifts: what they are told, in which order, how many they may be, and their end."""

from __future__ import annotations

from contextlib import aclosing
from datetime import timedelta

import numpy as np
import pytest

from services.router.drift.events import Place, State
from splitmesh.errors import MeshError, Reason
from tests.unit.drift_boards import PLACE, WRONG, Surroundings, board
from tests.unit.drifting import UNIT, audit, escalated, report


@pytest.fixture
def around() -> Surroundings:
    return Surroundings()


async def test_who_follows_sees_events_with_a_larger_number_and_every_change_of_state(around: Surroundings) -> None:
    async with board(around) as made:
        for camera in "abc":
            await made.saw(report(*[audit(camera, wrong=True)] * 20))
            await made.seen(*PLACE)
        await made.saw(report(*[audit(wrong=True)] * 20, model="other"))
        await made.seen("other", 1)
        async with aclosing(made.watch("parts", 1)) as events, aclosing(made.watch("", 3)) as every:
            assert [(await anext(events)).number for _ in range(2)] == [2, 3]
            assert (await anext(every)).model == "other"
            await made.resolve(1)
            assert ((first := await anext(events)).number, first.state) == (1, State.RESOLVED)
            await made.saw(report(*[audit("d", wrong=True)] * 20))
            assert (await anext(events)).place == Place("d")
            assert [(await anext(every)).number for _ in range(2)] == [1, 5]


async def test_who_is_slow_sees_the_latest_of_an_event_and_not_every_one(around: Surroundings) -> None:
    async with board(around) as made:
        await made.saw(WRONG)
        await made.seen(*PLACE)
        async with aclosing(made.watch("parts", 0)) as events:
            assert (await anext(events)).state is State.TIGHTENED
            around.now += timedelta(hours=1)
            await made.saw(report(*escalated(np.random.default_rng(6), 900, every=UNIT)))
            await made.seen(*PLACE)
            await made.resolve(1)
            await made.saw(report(*[audit("b", wrong=True)] * 20))
            await made.seen(*PLACE)
            assert [(one.number, one.state) for one in [await anext(events), await anext(events)]] == [
                (1, State.RESOLVED),
                (2, State.TIGHTENED),
            ]


async def test_too_many_who_follow_are_refused_and_all_are_let_go_at_a_stop(around: Surroundings) -> None:
    async with board(around, max_watchers=1) as made:
        await made.saw(WRONG)
        await made.seen(*PLACE)
        async with aclosing(made.watch("parts", 0)) as events:
            await anext(events)
            with pytest.raises(MeshError) as caught:
                await anext(made.watch("parts", 0))
            assert caught.value.reason is Reason.QUEUE_FULL
            await around.drain.drain(0.0)
            with pytest.raises(MeshError) as caught:
                await anext(events)
            assert caught.value.reason is Reason.NOT_READY
