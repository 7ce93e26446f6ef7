"""Another version beside the one that answers: whose answer a frame gets, and what is counted of the two."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any, cast

import pytest

from edge.head.active import ActiveModel
from edge.head.frame import FrameRequest, Picture
from edge.head.serving.assignments import TrialOrder
from edge.head.trial import trials
from edge.head.trial.trial import Counts, Trial
from edge.head.ways import Ways
from splitmesh.client.answers import AnsweredBy
from splitmesh.errors import MeshError, Reason
from splitmesh.model.manifest import HEAD
from splitmesh.routing.gate import Gate
from tests.support.answering import Head, Tail, head, loaded
from tests.support.models import EASY, HARD, exit_version

WAIT_S = 10.0


class Tried:
    """A head with a trial."""

    def __init__(self, made: Head, candidate: ActiveModel, link: Tail, trial: Trial) -> None:
        self.head, self.candidate, self.link, self.trial = made, candidate, link, trial

    async def counts(self) -> dict[str, int]:
        """What is not 0, once nothing is being compared."""
        async with asyncio.timeout(WAIT_S):
            while running := self.head.answerer._trials._running:
                await asyncio.wait(set(running))
        found = asdict(self.trial.counts)
        return {name: n for name, n in found.items() if name != "trial_id" and n}


@asynccontextmanager
async def tried(
    *, answer_share: float = 0.0, pair_share: float = 1.0, gate: float = 0.9, own: float = 0.9, **more: Any
) -> AsyncIterator[Tried]:
    """Version 1 answers, with an exit at ``own``; version 2, at ``gate``, is tried."""
    async with head(gate=Gate(own), **more) as made:
        link = Tail()
        candidate = loaded(exit_version(), HEAD, link=link, version=2)
        candidate.gate = Gate(gate)
        ways = Ways.only(candidate)
        order = TrialOrder(trial_id="t", candidate=2, answer_share=answer_share, pair_share=pair_share)
        trial = made.models.tried = Trial(order, ways, Counts("t"), lambda: None)
        try:
            yield Tried(made, candidate, link, trial)
        finally:
            await Tried(made, candidate, link, trial).counts()
            await ways.retire()


def broken(active: ActiveModel, error: Exception, *, held: asyncio.Event | None = None) -> None:
    """From now on every frame of the version fails."""
    session = active.session

    class _Broken:
        def __getattr__(self, name: str) -> Any:
            return getattr(session, name)

        def run(self, feeds: Any) -> Any:
            raise error

    active.session = cast(Any, _Broken())


async def test_in_a_shadow_the_serving_version_answers_and_both_answers_are_compared() -> None:
    async with tried() as made:
        answers = [await made.head.infer(brightness) for brightness in (EASY, HARD)]
        assert [answer.active.info.version for answer in answers] == [1, 1]
        assert await made.counts() == {"both_right": 2, "answered_by_serving": 2}
        assert made.head.counts.of.total() == 2, "what nobody was told is no outcome"


async def test_a_candidate_whose_exit_is_too_sure_is_wrong_where_the_serving_versions_tail_is_right() -> None:
    async with tried(gate=0.5) as made:
        await made.head.infer(HARD)
        assert await made.counts() == {"only_serving_right": 1, "answered_by_serving": 1}


async def test_a_serving_exit_that_is_wrong_is_held_against_it_by_its_own_full_model() -> None:
    async with tried(own=0.5) as made:
        answer = await made.head.infer(HARD)
        assert answer.answered_by is AnsweredBy.EDGE_EXIT
        assert await made.counts() == {"only_candidate_right": 1, "answered_by_serving": 1}


async def test_a_canary_answers_and_the_serving_version_is_asked_behind_it() -> None:
    async with tried(answer_share=1.0) as made:
        answers = [await made.head.infer(brightness, camera_id="one") for brightness in (EASY, HARD)]
        assert [answer.active.info.version for answer in answers] == [2, 2]
        assert await made.counts() == {"both_right": 2, "answered_by_candidate": 2}


@pytest.mark.parametrize("error", [MeshError(Reason.MODEL_CORRUPT, "broken"), ValueError("unforeseen")], ids=repr)
async def test_what_a_broken_candidate_does_not_answer_the_serving_version_does(error: Exception) -> None:
    async with tried(answer_share=1.0) as made:
        broken(made.candidate, error)
        assert (await made.head.infer(EASY)).active.info.version == 1
        assert await made.counts() == {"only_serving_right": 1, "candidate_failed": 1, "answered_by_serving": 1}


def slow(active: ActiveModel, takes_s: float) -> None:
    """From now on its session takes so long, and cannot be stopped."""
    session = active.session

    class _Slow:
        def __getattr__(self, name: str) -> Any:
            return getattr(session, name)

        def run(self, feeds: Any) -> Any:
            threading.Event().wait(takes_s)
            return session.run(feeds)

    active.session = cast(Any, _Slow())


async def test_what_a_candidate_answers_too_late_the_serving_version_answers_in_time_with_one_worker() -> None:
    async with tried(answer_share=1.0, pair_share=0.0, workers=1) as made:
        slow(made.candidate, 2.0)
        for _ in range(2):
            assert (await made.head.infer(EASY, deadline_ms=1000)).active.info.version == 1
        assert made.head.counts.of["refused DEADLINE_EXPIRED"] == 2, "the second is not begun, and counted"
        assert await made.counts() == {"answered_by_serving": 2}


async def test_a_slow_candidate_in_a_shadow_keeps_no_frame_from_the_only_worker() -> None:
    async with tried(workers=1) as made:
        slow(made.candidate, 2.0)
        for _ in range(3):
            assert (await made.head.infer(EASY, deadline_ms=1000)).active.info.version == 1
        assert made.trial.counts.answered_by_serving == 3


async def test_a_frame_whose_candidate_fails_is_answered_though_the_serving_version_was_let_go_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with tried(answer_share=1.0, pair_share=0.0) as made:
        by, entered, fail = made.head.answerer._by, asyncio.Event(), asyncio.Event()

        async def held(*about: Any, aside: bool = False) -> Any:
            if aside:
                entered.set()
                await fail.wait()
                raise MeshError(Reason.MODEL_CORRUPT, "broken")
            return await by(*about)

        monkeypatch.setattr(made.head.answerer, "_by", held)
        frame = asyncio.create_task(made.head.infer(EASY))
        await entered.wait()
        retiring = asyncio.create_task(made.head.ways.retire())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        fail.set()
        assert (await frame).active.info.version == 1
        await retiring


async def test_a_broken_candidate_in_a_shadow_is_counted_and_nobody_notices() -> None:
    async with tried() as made:
        broken(made.candidate, MeshError(Reason.MODEL_CORRUPT, "broken"))
        assert (await made.head.infer(EASY)).active.info.version == 1
        assert await made.counts() == {"only_serving_right": 1, "candidate_failed": 1, "answered_by_serving": 1}


async def test_a_candidate_that_no_tail_accepts_answers_by_its_exit_and_is_judged_by_that() -> None:
    async with tried() as made:
        made.link.available = False
        await made.head.infer(HARD)
        assert await made.counts() == {"only_serving_right": 1, "answered_by_serving": 1}


async def test_a_frame_that_is_bad_by_itself_says_nothing_of_either_version() -> None:
    async with tried(answer_share=1.0) as made:
        with pytest.raises(MeshError) as caught:
            await made.head.answerer.answer(FrameRequest(Picture(b"no picture")))
        assert caught.value.reason is Reason.IMAGE_UNDECODABLE
        assert await made.counts() == {}


async def test_a_pair_for_which_there_is_no_budget_is_not_made() -> None:
    async with tried() as made:
        made.head.budget.room = False
        answer = await made.head.infer(HARD)
        assert answer.answered_by is AnsweredBy.CLOUD_TAIL
        assert await made.counts() == {"not_made": 1, "answered_by_serving": 1}


async def test_a_pair_of_which_nobody_can_say_what_is_right_is_not_made() -> None:
    async with tried(own=0.5) as made:
        made.head.tail.available = False
        assert (await made.head.infer(HARD)).answered_by is AnsweredBy.EDGE_EXIT
        assert await made.counts() == {"not_made": 1, "answered_by_serving": 1}


async def test_a_caller_who_was_told_of_one_versions_outputs_gets_them_from_no_other() -> None:
    async with tried(answer_share=1.0) as made:
        answer = await made.head.infer(EASY, outputs_needed=True)
        assert answer.active.info.version == 1
        assert (await made.counts())["both_right"] == 1


async def test_few_frames_are_compared_at_once_and_the_others_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    async with tried() as made:
        held, ask = asyncio.Event(), made.head.answerer.others.answer

        async def waits(*args: Any) -> Any:
            await held.wait()
            return await ask(*args)

        monkeypatch.setattr(made.head.answerer.others, "answer", waits)
        # A tail's answer is the reference by itself, so only the candidate's turn is held.
        for _ in range(trials.PAIRS_AT_ONCE + 3):
            await made.head.infer(HARD)
        assert made.trial.counts.not_made == 3
        held.set()
        counts = await made.counts()
        assert (counts["both_right"], counts["not_made"]) == (trials.PAIRS_AT_ONCE, 3)


async def test_a_version_that_is_let_go_stays_until_its_pairs_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    async with tried() as made:
        held, ask = asyncio.Event(), made.head.answerer.others.answer

        async def waits(*args: Any) -> Any:
            await held.wait()
            return await ask(*args)

        monkeypatch.setattr(made.head.answerer.others, "answer", waits)
        await made.head.infer(HARD)
        retiring = asyncio.create_task(made.trial.candidate.retire())
        made.head.models.tried = None
        await asyncio.sleep(0)
        assert not retiring.done()
        held.set()
        assert await made.counts() == {"both_right": 1, "answered_by_serving": 1}
        await retiring


def trial(answer_share: float, pair_share: float = 0.0, *, name: str = "t", reference: str = "FULL_MODEL") -> Trial:
    order = TrialOrder.model_validate(
        {
            "trial_id": name,
            "candidate": 2,
            "answer_share": answer_share,
            "pair_share": pair_share,
            "reference": reference,
        }
    )
    return Trial(order, cast(Any, None), Counts(name), lambda: None)


def request(camera: str = "", stream: str = "", frame: int = 0) -> FrameRequest:
    return FrameRequest(Picture(b""), camera_id=camera, stream=stream, frame_id=frame)


@pytest.mark.parametrize("named", ["camera", "stream"])
def test_all_frames_of_a_camera_or_stream_are_answered_by_the_same_version(named: str) -> None:
    made = trial(0.5, 0.5)
    by_name = {
        name: {
            made.draw(request(**{named: f"{name}"}, frame=frame), frame).answered_by_candidate for frame in range(50)
        }
        for name in range(200)
    }
    assert all(len(seen) == 1 for seen in by_name.values())
    assert 60 < sum(True in seen for seen in by_name.values()) < 140


def test_a_larger_share_keeps_the_cameras_of_a_smaller_one() -> None:
    few, many = (
        {n for n in range(500) if trial(share).draw(request(camera=f"{n}"), n).answered_by_candidate}
        for share in (0.1, 0.3)
    )
    assert 20 < len(few) < len(many) < 250
    assert few < many


def test_pairs_are_drawn_for_each_frame_and_not_where_labels_tell_what_is_right() -> None:
    drawn = [trial(0.0, 0.2).draw(request(camera="one", frame=n), n).pair for n in range(2000)]
    assert 300 < sum(drawn) < 500
    assert not trial(0.0, 1.0, reference="LABELS").draw(request(), 1).pair
    assert all(trial(0.0, 1.0).draw(request(), n).pair for n in range(100))


def test_other_trials_draw_others() -> None:
    one, two = (
        [trial(0.5, name=name).draw(request(camera=f"{n}"), n).answered_by_candidate for n in range(200)]
        for name in ("a", "b")
    )
    assert one != two
