"""One StreamInfer stream: frames in, answers out as they become ready, a bad frame answered by its own error."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from edge.head.answer import Answerer
from edge.head.config import HeadSettings
from edge.head.messages import answer_to_message, frame_from_message
from splitmesh.api.inference.v1 import inference_pb2 as pb
from splitmesh.errors import MeshError
from splitmesh.kernel.errors import to_status
from splitmesh.kernel.streams import Drain, FrameStream


class FrameStreams:
    """Serves StreamInfer."""

    def __init__(self, answerer: Answerer, settings: HeadSettings, drain: Drain) -> None:
        self._answerer = answerer
        self._settings = settings
        self._drain = drain

    async def serve(self, requests: AsyncIterator[pb.StreamInferRequest]) -> AsyncGenerator[pb.StreamInferResponse]:
        """Accept, then answer until the client has sent its last frame or the node drains."""
        yield pb.StreamInferResponse(
            accepted=pb.StreamAccepted(credit=self._settings.credit, max_frame_bytes=self._settings.max_frame_bytes)
        )
        stream: FrameStream[pb.InferRequest, pb.StreamInferResponse] = FrameStream(
            self._answer, _refuse, credit=self._settings.credit, drain=self._drain
        )
        async with aclosing(stream.serve(_frames(requests))) as responses:
            async for response in responses:
                yield response

    async def _answer(self, request: pb.InferRequest) -> pb.StreamInferResponse:
        return pb.StreamInferResponse(
            result=answer_to_message(await self._answerer.answer(frame_from_message(request)))
        )


async def _frames(requests: AsyncIterator[pb.StreamInferRequest]) -> AsyncIterator[pb.InferRequest]:
    async for request in requests:
        yield request.frame


def _refuse(request: pb.InferRequest, error: MeshError) -> pb.StreamInferResponse:
    return pb.StreamInferResponse(error=pb.FrameError(frame_id=request.frame_id, status=to_status(error)))
