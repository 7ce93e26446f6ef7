"""InferenceService on gRPC: decode, call, encode. Requests come lifted (``kernel/large_fields.py``)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from edge.head.answer import Answerer
from edge.head.messages import answer_to_message, frame_from_message
from edge.head.stream import FrameStreams
from splitmesh.api.inference.v1 import inference_pb2_grpc


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """Serves camera gateways."""

    def __init__(self, answerer: Answerer, streams: FrameStreams) -> None:
        self._answerer = answerer
        self._streams = streams

    async def Infer(self, request: Any, context: Any) -> Any:
        """Answers one picture."""
        message = request.message
        answer = await self._answerer.answer(frame_from_message(message, request.blobs))
        return answer_to_message(answer, message.max_labels)

    async def StreamInfer(self, request_iterator: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        """Answers a stream of pictures."""
        async with aclosing(self._streams.serve(request_iterator)) as responses:
            async for response in responses:
                yield response
