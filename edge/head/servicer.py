"""InferenceService on gRPC: decode, call, encode."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from edge.head.answer import Answerer
from edge.head.messages import answer_to_message, frame_from_message
from edge.head.stream import FrameStreams
from splitmesh.api.inference.v1 import inference_pb2, inference_pb2_grpc


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """Serves camera gateways."""

    def __init__(self, answerer: Answerer, streams: FrameStreams) -> None:
        self._answerer = answerer
        self._streams = streams

    async def Infer(self, request: inference_pb2.InferRequest, context: Any) -> inference_pb2.InferResponse:
        """Answers one picture."""
        return answer_to_message(await self._answerer.answer(frame_from_message(request)))

    async def StreamInfer(
        self, request_iterator: AsyncIterator[inference_pb2.StreamInferRequest], context: Any
    ) -> AsyncIterator[inference_pb2.StreamInferResponse]:
        """Answers a stream of pictures."""
        async with aclosing(self._streams.serve(aiter(request_iterator))) as responses:
            async for response in responses:
                yield response
