"""One ModelStreamInfer stream: each request is answered, or refused by a message of its own.

Clients of the protocol know no credit. So none of their requests is refused for it: with so many unanswered the next is not read,
and HTTP/2's flow control makes the sender wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from itertools import count

from splitmesh.api.oip.v2 import grpc_service_pb2 as pb
from splitmesh.errors import MeshError
from splitmesh.kernel.streams import Drain, FrameStream
from splitmesh.kernel.wire import Lifted
from splitmesh.oip.requests import Requests

Request = Lifted[pb.ModelInferRequest]
Response = pb.ModelStreamInferResponse | Lifted[pb.ModelStreamInferResponse]


@dataclass(frozen=True, slots=True)
class _Numbered:
    """A request with a number of ours: ids may be missing or the same."""

    number: int
    request: Request


class RequestStreams:
    """Serves ModelStreamInfer."""

    def __init__(self, requests: Requests, *, credit: int, drain: Drain, in_order: bool) -> None:
        self._requests = requests
        self._credit = credit
        self._drain = drain
        self._in_order = in_order

    async def serve(self, requests: AsyncIterator[Request]) -> AsyncGenerator[Response]:
        """Answers until the client has sent its last request or the node drains; then MeshError NOT_READY."""
        free = asyncio.Semaphore(self._credit)
        stream: FrameStream[_Numbered, Response] = FrameStream(
            self._answer,
            _refuse,
            frame_id=lambda item: item.number,
            credit=self._credit,
            drain=self._drain,
            in_order=self._in_order,
        )
        async with aclosing(stream.serve(_as_there_is_room(requests, free))) as responses:
            async for response in responses:
                free.release()
                yield response

    async def _answer(self, item: _Numbered) -> Response:
        answer = await self._requests.answer(item.request)
        if not isinstance(answer, Lifted):
            return pb.ModelStreamInferResponse(infer_response=answer)
        return Lifted(pb.ModelStreamInferResponse(infer_response=answer.message), answer.blobs)


async def _as_there_is_room(requests: AsyncIterator[Request], free: asyncio.Semaphore) -> AsyncIterator[_Numbered]:
    for number in count():
        await free.acquire()
        request = await anext(requests, None)
        if request is None:
            return
        yield _Numbered(number, request)


def _refuse(item: _Numbered, error: MeshError) -> Response:
    """The reason first, so that a program can act on it; the id is said where newer clients look for it."""
    message = item.request.message
    named = pb.ModelInferResponse(model_name=message.model_name, model_version=message.model_version, id=message.id)
    return Lifted(pb.ModelStreamInferResponse(error_message=str(error), infer_response=named), ())
