"""A version that another takes the place of between being found and being asked: nobody gets a mixture of the two."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from edge.head.config import HeadSettings
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

    def __init__(self, moves: int) -> None:
        self.version, self._moves = 1, moves

    async def served(self, model: str, version: str) -> Served:
        return served(self.version)

    async def infer(self, one: Served, call: Call) -> Inferred:
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


async def test_a_head_tells_when_another_version_answered() -> None:
    async def answer(_: object) -> object:
        return SimpleNamespace(active=SimpleNamespace(info=SimpleNamespace(version=2)))

    backend = HeadBackend(cast(Any, None), cast(Any, SimpleNamespace(answer=answer)), HeadSettings(models="m"))
    message = request("m", planes(EASY))
    with pytest.raises(VersionMovedError):
        await backend.infer(served(1), call_from_message(message, tuple(message.raw_input_contents), LIMITS))
