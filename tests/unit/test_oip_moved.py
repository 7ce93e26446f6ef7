"""A version that another takes the place of between being found and being asked: nobody gets a mixture of the two."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from edge.head.config import HeadSettings
from edge.head.frame import FrameAnswer
from edge.head.oip import HeadBackend
from splitmesh.api.oip.v2 import grpc_service_pb2 as pb
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.wire import Lifted
from splitmesh.model.manifest import Manifest
from splitmesh.oip.backend import Inferred, Served, Spent, VersionMovedError
from splitmesh.oip.request import Call, call_from_message
from splitmesh.oip.requests import Requests
from splitmesh.tensor.spec import TensorLimits
from tests.support.models import EASY, MANIFEST, whole_version
from tests.support.oip import logits, planes, request

LIMITS = TensorLimits()
FOUND = Manifest.from_json(whole_version()[MANIFEST])


def served(version: int) -> Served:
    return Served("m", version, FOUND, 4, "cpu", 1, 0, 1, 0, {})


class Moving:
    """A node whose version moves on so many times while it is asked."""

    def __init__(self, moves: int, takes_s: float = 0.0) -> None:
        self.version, self._moves, self._takes_s = 1, moves, takes_s
        self.deadlines_ms: list[int] = []

    async def served(self, model: str, version: str) -> Served:
        return served(self.version)

    async def infer(self, one: Served, call: Call) -> Inferred:
        self.deadlines_ms.append(call.options.deadline_ms)
        await asyncio.sleep(self._takes_s)
        if self._moves:
            self._moves -= 1
            self.version += 1
            raise VersionMovedError(Reason.NOT_READY, "moved", retry_after_s=0.1)
        return Inferred({"logits": logits(EASY)}, {}, {}, Spent(), ())


def lifted() -> Lifted[pb.ModelInferRequest]:
    message = request("m", planes(EASY))
    return Lifted(message, tuple(message.raw_input_contents))


async def test_a_request_whose_version_moved_on_is_asked_again_and_counted_once() -> None:
    requests = Requests(cast(Any, Moving(1)), LIMITS)
    answer = await requests.answer(lifted())
    assert isinstance(answer, pb.ModelInferResponse)
    assert answer.model_version == "2"
    (counted,) = requests.statistics.messages()
    assert (counted.version, counted.inference_stats.success.count, counted.inference_stats.fail.count) == ("2", 1, 0)


async def test_a_version_that_moves_on_again_and_again_is_not_ready() -> None:
    with pytest.raises(MeshError) as caught:
        await Requests(cast(Any, Moving(9)), LIMITS).answer(lifted())
    assert caught.value.reason is Reason.NOT_READY
    assert caught.value.retry_after_s


async def test_a_second_try_has_what_the_first_left_of_the_time() -> None:
    node = Moving(1, takes_s=0.2)
    await Requests(cast(Any, node), LIMITS).answer(lifted(), left_s=2.0)
    first_ms, second_ms = node.deadlines_ms
    assert 1500 < first_ms <= 2000
    assert 1000 < second_ms <= first_ms - 200


async def test_every_way_of_a_version_answers_for_it() -> None:
    def way(version: int) -> Any:
        info, session = SimpleNamespace(model="m", version=version), SimpleNamespace(providers=["cpu"])
        return SimpleNamespace(info=info, manifest=FOUND, session=session, scores=None)

    async def answer(_: object) -> object:
        return FrameAnswer(frame_id=0, active=cast(Any, way(7)), trace_id="", outputs={"logits": logits(EASY)})

    ways = SimpleNamespace(all=[way(1), way(7)])
    models = SimpleNamespace(ways=lambda _: ways)
    backend = HeadBackend(cast(Any, models), cast(Any, SimpleNamespace(answer=answer)), HeadSettings(models="m"))
    about = await backend.served("m", "")
    message = request("m", planes(EASY))
    assert about.version == 1
    assert backend._versions(about) == {1, 7}
    assert backend._versions(served(1)) == {1}, "what was told of another life of the version holds for that alone"
    call = call_from_message(message, tuple(message.raw_input_contents), LIMITS)
    assert (await backend.infer(about, call)).parameters["model_version"] == "7"


async def test_a_head_tells_when_another_version_answered() -> None:
    async def answer(_: object) -> object:
        return SimpleNamespace(active=SimpleNamespace(info=SimpleNamespace(version=2)))

    backend = HeadBackend(cast(Any, None), cast(Any, SimpleNamespace(answer=answer)), HeadSettings(models="m"))
    message = request("m", planes(EASY))
    with pytest.raises(VersionMovedError):
        await backend.infer(served(1), call_from_message(message, tuple(message.raw_input_contents), LIMITS))
