"""SegmentService on a head: it describes itself and times pieces of models, and runs segments for nobody."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from edge.head.active import ActiveModel
from edge.head.config import HeadSettings
from edge.head.models import Models
from splitmesh.api.segment.v1 import segment_pb2, segment_pb2_grpc
from splitmesh.client.registry_trust import Withdrawn
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.profiling import PieceTimer, live_messages
from splitmesh.kernel.tensors import spec_to_message
from splitmesh.runtime.providers import preferred


class HeadSegmentServicer(segment_pb2_grpc.SegmentServiceServicer):
    """What a partitioner asks a head."""

    def __init__(self, models: Models, settings: HeadSettings, withdrawn: Withdrawn) -> None:
        self._models = models
        self._settings = settings
        self._withdrawn = withdrawn
        self._backend = preferred(settings.providers)
        self._timer = PieceTimer(settings, settings.segment_threads or 1, self._backend)

    async def Run(
        self, request_iterator: AsyncIterator[segment_pb2.RunRequest], context: Any
    ) -> AsyncIterator[segment_pb2.RunResponse]:
        """Refused: frames come to a head through InferenceService."""
        raise MeshError(
            Reason.UNIMPLEMENTED, f"{self._settings.node!r} is a head: send pictures to its InferenceService"
        )
        yield  # an asynchronous generator, as the stubs want it

    async def Describe(self, request: segment_pb2.DescribeRequest, context: Any) -> segment_pb2.DescribeResponse:
        """What this head answers with, and its streams to the nodes behind it."""
        return segment_pb2.DescribeResponse(
            node=self._settings.node,
            segments=[self._segment(active) for active in self._models.loaded()],
            threads=self._threads(),
            backend=self._backend,
            uplinks=[
                uplink
                for active in self._models.loaded()
                if active.link is not None
                for uplink in active.link.uplinks()
            ],
        )

    async def Profile(
        self, request_iterator: AsyncIterator[segment_pb2.ProfileRequest], context: Any
    ) -> segment_pb2.ProfileResponse:
        """Times one piece."""
        return await self._timer.serve(aiter(request_iterator))

    def _threads(self) -> int:
        """As set; of the first version's head where that was measured, and 1 until one is loaded."""
        return self._settings.segment_threads or next((active.threads for active in self._models.loaded()), 1)

    def _segment(self, active: ActiveModel) -> segment_pb2.LoadedSegment:
        return segment_pb2.LoadedSegment(
            model=active.info.model,
            version=active.info.version,
            inputs=[spec_to_message(spec) for spec in active.session.inputs],
            outputs=[spec_to_message(spec) for spec in active.session.outputs],
            backend=active.session.providers[0],
            threads=active.threads,
            live=live_messages(active.live.summary()),
            withdrawn=self._withdrawn(active.info.model, active.info.version) or "",
        )
