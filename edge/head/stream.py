"""One StreamInfer stream: frames in, answers out as they become ready or in order, a bad frame answered by its own error.

What the first message asks for is decided here, and which refusals the head counts; how frames wait, give way and are given
up is ``kernel/streams.py``.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

from edge.head.answer import Answerer
from edge.head.config import HeadSettings
from edge.head.messages import answer_to_stream_message, frame_from_message
from splitmesh.api.inference.v1 import inference_pb2 as pb
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.kernel.errors import to_status
from splitmesh.kernel.streams import Cancel, Drain, FrameStream
from splitmesh.kernel.wire import Lifted
from splitmesh.tensor.spec import Buffer

Requests = AsyncIterable[Lifted[pb.StreamInferRequest]]
"""Not an iterator yet: gRPC warns of one that nobody begins, as of a client that goes away at once."""
Response = pb.StreamInferResponse | Lifted[pb.StreamInferResponse]


@dataclass(slots=True)
class _Asked:
    """A frame as it came."""

    request: pb.InferRequest
    blobs: Sequence[Buffer]
    arrived: float
    """On the loop's clock."""
    known: bool = False
    """The answerer has it, and counts it whatever becomes of it."""


class FrameStreams:
    """Serves StreamInfer."""

    def __init__(self, answerer: Answerer, settings: HeadSettings, drain: Drain) -> None:
        self._answerer = answerer
        self._settings = settings
        self._drain = drain
        self._numbers = itertools.count(1)

    async def serve(self, requests: Requests) -> AsyncGenerator[Response]:
        """Accept, then answer until the client has sent its last frame or the node drains."""
        yield pb.StreamInferResponse(
            accepted=pb.StreamAccepted(credit=self._settings.credit, max_frame_bytes=self._settings.max_frame_bytes)
        )
        stream: FrameStream[_Asked, Response] = FrameStream(
            partial(self._answer, str(next(self._numbers))),
            self._refuse,
            frame_id=lambda asked: asked.request.frame_id,
            credit=self._settings.credit,
            drain=self._drain,
        )
        async with aclosing(stream.serve(self._items(requests, stream))) as responses:
            async for response in responses:
                yield response

    async def _items(self, requests: Requests, stream: FrameStream[_Asked, Response]) -> AsyncIterator[_Asked | Cancel]:
        clock, first = asyncio.get_running_loop().time, True
        async for request in requests:
            message = request.message
            match message.WhichOneof("message"):
                case "options":
                    if not first:
                        raise MeshError(Reason.PROTOCOL_VIOLATION, "options are a stream's first message or left out")
                    self._arrange(stream, message.options)
                case "cancel":
                    yield Cancel(message.cancel.frame_id)
                case _:
                    yield _Asked(message.frame, request.blobs, clock())
            first = False
            del request, message  # large: not to be kept until the next one comes

    def _arrange(self, stream: FrameStream[_Asked, Response], options: pb.StreamOptions) -> None:
        if options.order not in pb.AnswerOrder.values():
            raise field_error("options.order", f"{options.order} is unknown")
        if options.drop not in pb.DropPolicy.values():
            raise field_error("options.drop", f"{options.drop} is unknown")
        in_order = options.order == pb.ANSWER_ORDER_IN_ORDER
        if options.drop != pb.DROP_POLICY_OLDEST:
            if options.max_waiting:
                raise field_error("options.max_waiting", "counts only with DROP_POLICY_OLDEST")
            stream.arrange(in_order=in_order)
            return
        stream.arrange(
            in_order=in_order,
            max_waiting=options.max_waiting or 1,
            concurrency=min(self._settings.live_frames, self._settings.credit),
        )

    async def _answer(self, stream: str, asked: _Asked) -> Response:
        request = asked.request
        waited_ms = (asyncio.get_running_loop().time() - asked.arrived) * 1000
        frame = frame_from_message(request, asked.blobs, waited_ms=waited_ms, stream=stream)
        asked.known = True
        try:
            answer = await self._answerer.answer(frame)
        except MeshError as error:
            return _error(request.frame_id, error)
        return answer_to_stream_message(answer, request.max_labels)

    def _refuse(self, asked: _Asked, error: MeshError) -> Response:
        if not asked.known:
            self._answerer.refused(asked.request.model, error.reason)
        return _error(asked.request.frame_id, error)


def _error(frame_id: int, error: MeshError) -> pb.StreamInferResponse:
    return pb.StreamInferResponse(error=pb.FrameError(frame_id=frame_id, status=to_status(error)))
