"""What an answer says about how it was decided, and who is told; by real sessions."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import numpy as np
import pytest

from edge.head.decided import TailSaid
from edge.head.messages import answer_to_message
from edge.head.observers import Observers
from splitmesh.api.inference.v1 import inference_pb2 as pb
from splitmesh.client import AnsweredBy, Routing, Why
from splitmesh.client.answers import answer_from_message
from splitmesh.errors import MeshError, Reason
from splitmesh.routing.gate import ESCALATE_ALL, Gate, Override
from splitmesh.routing.rule import EXPECTED_COST, Judge, Rule
from tests.support.answering import CLOUD_MS, Watcher, features_version, head, spoil_exit
from tests.support.fitted import strange_beyond
from tests.support.models import EASY, HARD, LABELS, split_version

MISSED_BRIGHT = (0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 100.0, 100.0, 0.0)
"""Costs: to miss "bright" is a hundred times as bad as any other mistake."""


async def test_an_answer_says_why_it_was_given_where_it_was() -> None:
    async with head() as edge:
        easy, hard = await edge.infer(EASY), await edge.infer(HARD)
    assert (easy.answered_by, hard.answered_by) == (AnsweredBy.EDGE_EXIT, AnsweredBy.CLOUD_TAIL)
    assert easy.routing is not None
    assert hard.routing is not None
    assert (easy.routing.why, easy.routing.score, easy.routing.threshold) == (Why.SURE, "max_probability", 0.9)
    assert easy.routing.ease == pytest.approx(easy.exit_confidence)
    assert hard.routing == Routing(
        Why.UNSURE, "max_probability", pytest.approx(0.73, abs=0.01), 0.9, pytest.approx(0.27, abs=0.01),
        policy_revision=3,
    )  # fmt: skip


async def test_all_of_it_reaches_the_client_and_what_is_undefined_is_none() -> None:
    async with head() as edge:
        spoil_exit(edge.active, [math.nan] * 3)
        answer = await edge.infer(EASY)
    message = answer_to_message(answer)
    assert isinstance(message, pb.InferResponse)
    assert answer_from_message(message).routing == answer.routing
    assert answer.routing == Routing(Why.UNDEFINED, "max_probability", None, 0.9, 1.0, policy_revision=3)
    assert answer.answered_by is AnsweredBy.CLOUD_TAIL
    # An exit that names nothing has not said otherwise.
    (told,) = edge.watchers[0].told
    assert told.tail is not None
    assert not told.tail.disagreed
    assert edge.counts.of == {"cloud_tail": 1}


async def test_where_the_exit_says_nothing_the_error_is_why_the_tail_did_not_answer() -> None:
    async with head() as edge:
        spoil_exit(edge.active, [math.nan] * 3)
        edge.tail.fails = MeshError(Reason.DEADLINE_EXPIRED, "late")
        with pytest.raises(MeshError) as caught:
            await edge.infer(EASY)
    assert caught.value.reason is Reason.DEADLINE_EXPIRED


def test_every_reason_has_a_name_on_the_wire_and_one_of_a_later_head_is_no_reason_to_lose_an_answer() -> None:
    reasons = pb.DESCRIPTOR.pool.FindEnumTypeByName("splitmesh.api.routing.v1.RouteReason")
    assert {f"ROUTE_REASON_{why}" for why in Why} | {"ROUTE_REASON_UNSPECIFIED"} == set(reasons.values_by_name)
    later = pb.InferResponse(answered_by=pb.ANSWERED_BY_CLOUD_TAIL, routing=pb.Routing(why=99))  # type: ignore[arg-type]
    assert answer_from_message(later).routing is None


async def test_one_cameras_override_escalates_that_camera_only() -> None:
    gate = Gate(0.9, overrides=[Override("north", "", ESCALATE_ALL)])
    async with head(gate=gate) as edge:
        answers = {camera: await edge.infer(EASY, camera_id=camera) for camera in ("north", "south")}
    whys = {camera: answer.routing and answer.routing.why for camera, answer in answers.items()}
    assert whys == {"north": Why.DRIFTED, "south": Why.SURE}
    assert answers["north"].answered_by is AnsweredBy.CLOUD_TAIL
    assert answers["south"].answered_by is AnsweredBy.EDGE_EXIT


async def test_what_is_unlike_the_calibration_escalates_although_the_exit_is_sure() -> None:
    async with head(features_version(), Gate(0.9, unusual=strange_beyond(0.9))) as edge:
        usual, strange = await edge.infer(EASY), await edge.infer(1.0)
        assert edge.watchers[0].told[1].verdict.ease > 0.9
    assert usual.routing is not None
    assert strange.routing is not None
    assert (usual.routing.why, strange.routing.why) == (Why.SURE, Why.UNUSUAL)
    assert strange.answered_by is AnsweredBy.CLOUD_TAIL
    assert set(strange.outputs or {}) == {"logits"}
    (crossed,) = edge.tail.frames
    assert [spec.name for spec in crossed.header.tensors] == ["features"]


async def test_costs_put_the_cheapest_answer_first_with_its_own_score() -> None:
    gate = Gate(0.2, Judge(Rule(EXPECTED_COST, costs=MISSED_BRIGHT)))
    async with head(gate=gate) as edge:
        spoil_exit(edge.active, [0.6, 0.3, 0.1])
        answer = await edge.infer(EASY)
    assert answer.answered_by is AnsweredBy.EDGE_EXIT
    message = answer_to_message(answer)
    assert isinstance(message, pb.InferResponse)
    told = answer_from_message(message)
    assert [label.name for label in told.labels] == ["bright", "dark", "grey"]
    assert [label.score for label in told.labels] == pytest.approx([0.1, 0.6, 0.3])
    assert (told.label.name, told.exit_confidence) == ("bright", pytest.approx(0.6))
    (only,) = answer_to_message(answer, 1).labels  # type: ignore[union-attr]
    assert only.name == "bright"


async def test_with_costs_the_tail_disagrees_with_the_answer_and_not_with_the_most_probable_class() -> None:
    gate = Gate(ESCALATE_ALL, Judge(Rule(EXPECTED_COST, costs=MISSED_BRIGHT)))
    async with head(gate=gate) as edge:
        for row in ([0.6, 0.3, 0.1], [1.0, 0.0, 0.0]):  # "bright" is the cheaper answer, then "dark"
            spoil_exit(edge.active, row)
            assert (await edge.infer(EASY)).answered_by is AnsweredBy.CLOUD_TAIL
    tails = [frame.tail for frame in edge.watchers[0].told]
    assert [(tail.label, tail.disagreed) for tail in tails if tail] == [(0, True), (0, False)]
    assert edge.counts.of == {"cloud_tail disagreed": 1, "cloud_tail": 1}


async def test_with_costs_no_exit_stands_for_the_models_outputs_but_when_nobody_else_answers() -> None:
    async with head() as edge:
        await edge.infer(HARD)  # what the outputs hold is known from here on
        assert (await edge.infer(EASY, outputs_needed=True)).answered_by is AnsweredBy.EDGE_EXIT
        edge.active.gate = Gate(0.2, Judge(Rule(EXPECTED_COST, costs=MISSED_BRIGHT)))
        asked = await edge.infer(EASY, outputs_needed=True)
        assert asked.routing is not None
        assert (asked.answered_by, asked.routing.why) == (AnsweredBy.CLOUD_TAIL, Why.ASKED)
        edge.tail.fails = MeshError(Reason.SERVICE_UNAVAILABLE, "gone")
        assert (await edge.infer(EASY, outputs_needed=True)).answered_by is AnsweredBy.EDGE_FALLBACK


@pytest.mark.parametrize("brightness", [EASY, HARD])
async def test_a_version_without_an_exit_has_nothing_to_tell(brightness: float) -> None:
    async with head(split_version()) as edge:
        answer = await edge.infer(brightness)
    assert (answer.answered_by, answer.routing) == (AnsweredBy.CLOUD_TAIL, None)
    message = answer_to_message(answer)
    assert isinstance(message, pb.InferResponse)
    assert answer_from_message(message).routing is None
    assert not edge.watchers[0].told
    assert not edge.audits.shown
    assert [worth for _, worth, _ in edge.budget.asked] == [1.0]


async def test_observers_are_told_once_per_frame_when_all_of_the_answer_is_there() -> None:
    async with head() as edge:
        began = datetime.now(UTC)
        easy, hard = await edge.infer(EASY, camera_id="north"), await edge.infer(HARD)
        edge.tail.fails = MeshError(Reason.SERVICE_UNAVAILABLE, "gone")
        alone = await edge.infer(HARD)
        with pytest.raises(MeshError):
            await edge.infer(HARD, camera_id="c" * 200)
    (watcher,) = edge.watchers
    assert [frame.answer for frame in watcher.told] == [easy, hard, alone]
    assert all(watcher.total_ms)
    first, second, third = watcher.told
    assert (first.request.camera_id, first.active, first.verdict) == ("north", edge.active, first.seen.verdict)
    assert began <= first.arrived <= datetime.now(UTC)
    assert (first.tail, third.tail) == (None, None)
    assert second.tail is not None
    assert (LABELS[second.tail.label], second.tail.disagreed) == ("grey", True)
    assert second.tail.confidence == pytest.approx(float(np.max(hard.row)))
    assert alone.answered_by is AnsweredBy.EDGE_FALLBACK


async def test_an_observer_that_raises_harms_neither_the_frame_nor_the_others(caplog: pytest.LogCaptureFixture) -> None:
    broken, other = Watcher(RuntimeError("full")), Watcher()
    async with head(watchers=[broken, other]) as edge:
        for _ in range(3):
            assert (await edge.infer(EASY)).answered_by is AnsweredBy.EDGE_EXIT
    assert len(broken.told) == len(other.told) == 3
    # Not one trace per frame.
    assert caplog.text.count("Watcher failed to take a frame") == 1
    everybody, audited = Observers([broken, other]), other.told[0]
    for _ in range(2):
        everybody.audited(audited, TailSaid(0, 1.0, disagreed=False))
    assert len(broken.told) == len(other.told) == 5
    assert caplog.text.count("Watcher failed to take a frame") == 2


async def test_sure_answers_are_shown_for_audits_and_the_answer_says_when_one_is_made() -> None:
    async with head() as edge:
        assert not (await edge.infer(EASY)).routing.audited  # type: ignore[union-attr]
        edge.audits.chooses = True
        audited = await edge.infer(EASY)
        await edge.infer(HARD)
        edge.tail.fails = MeshError(Reason.SERVICE_UNAVAILABLE, "gone")
        await edge.infer(HARD)
    assert audited.routing is not None
    assert audited.routing.audited
    assert [frame.answer.answered_by for frame in edge.audits.shown] == [AnsweredBy.EDGE_EXIT] * 2
    assert [frame.answer.routing.audited for frame in edge.watchers[0].told if frame.answer.routing] == [
        False, True, False, False,
    ]  # fmt: skip


async def test_the_budget_hears_of_what_crossed_and_how_long_the_tail_took() -> None:
    async with head() as edge:
        await edge.infer(EASY)
        answer = await edge.infer(HARD)
        edge.tail.fails = MeshError(Reason.SERVICE_UNAVAILABLE, "gone")
        await edge.infer(HARD)
    expected = ("parts", pytest.approx(0.27, abs=0.01), answer.uplink_bytes)
    assert edge.budget.asked == [expected, expected]
    assert edge.budget.crossings == [("parts", CLOUD_MS)]
