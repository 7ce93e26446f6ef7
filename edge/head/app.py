"""Where the head's objects meet."""

from __future__ import annotations

from edge.head.answer import Answerer
from edge.head.config import HeadSettings
from edge.head.follow import ModelFollower, Models
from edge.head.report import Outcomes
from edge.head.segment_servicer import HeadSegmentServicer
from edge.head.servicer import InferenceServicer
from edge.head.stream import FrameStreams
from splitmesh.api.inference.v1 import inference_pb2_grpc
from splitmesh.api.segment.v1 import segment_pb2_grpc
from splitmesh.client.routing import RoutingClient
from splitmesh.kernel.lifecycle import App, Kernel
from splitmesh.kernel.server import Binding
from splitmesh.kernel.streams import Drain

SERVICE = "splitmesh.api.inference.v1.InferenceService"
SEGMENT_SERVICE = "splitmesh.api.segment.v1.SegmentService"


def build(settings: HeadSettings, kernel: Kernel) -> App:
    """The head, not started."""
    drain = Drain()

    async def serving() -> None:
        await kernel.health.set(SERVICE, True)

    followers = {name: ModelFollower(name, settings, kernel.channels, serving) for name in settings.model_names()}
    outcomes = Outcomes(RoutingClient(kernel.channels), settings.node, settings.report_interval_s)
    models = Models(followers)
    answerer = Answerer(models, settings, kernel.telemetry, outcomes)
    servicer = InferenceServicer(answerer, FrameStreams(answerer, settings, drain))
    binding = Binding(
        SERVICE,
        lambda server: inference_pb2_grpc.add_InferenceServiceServicer_to_server(servicer, server),
        serving_at_start=False,
    )
    segments = HeadSegmentServicer(models, settings)
    describing = Binding(
        SEGMENT_SERVICE, lambda server: segment_pb2_grpc.add_SegmentServiceServicer_to_server(segments, server)
    )
    return App("head", [binding, describing], parts=[outcomes, *followers.values(), answerer], drain=drain)
