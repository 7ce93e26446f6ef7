"""Where the head's objects meet."""

from __future__ import annotations

from edge.head.answer import Answerer
from edge.head.config import HeadSettings
from edge.head.follow import ModelFollower, Models
from edge.head.oip import HeadBackend
from edge.head.report import Outcomes
from edge.head.segment_servicer import HeadSegmentServicer
from edge.head.servicer import InferenceServicer
from edge.head.stream import FrameStreams
from splitmesh.api.inference.v1 import inference_pb2_grpc
from splitmesh.api.segment.v1 import segment_pb2_grpc
from splitmesh.client.routing import RoutingClient
from splitmesh.kernel.large_fields import (
    INFER_REQUEST,
    INFER_RESPONSE,
    STREAM_INFER_REQUEST,
    STREAM_INFER_RESPONSE,
)
from splitmesh.kernel.lifecycle import App, Kernel
from splitmesh.kernel.server import Binding
from splitmesh.kernel.streams import Drain
from splitmesh.oip.servicer import SERVICE as OIP_SERVICE
from splitmesh.oip.servicer import OipServicer
from splitmesh.oip.servicer import binding as oip_binding
from splitmesh.tensor import TensorLimits

SERVICE = "splitmesh.api.inference.v1.InferenceService"
SEGMENT_SERVICE = "splitmesh.api.segment.v1.SegmentService"


def build(settings: HeadSettings, kernel: Kernel) -> App:
    """The head, not started."""
    drain = Drain()

    async def serving() -> None:
        await kernel.health.set(SERVICE, True)
        await kernel.health.set(OIP_SERVICE, True)

    followers = {name: ModelFollower(name, settings, kernel.channels, serving) for name in settings.model_names()}
    models = Models(followers)
    outcomes = Outcomes(RoutingClient(kernel.channels), settings.node, settings.report_interval_s, models.loaded)
    answerer = Answerer(models, settings, kernel.telemetry, outcomes)
    servicer = InferenceServicer(answerer, FrameStreams(answerer, settings, drain))
    binding = Binding(
        SERVICE,
        lambda server: inference_pb2_grpc.add_InferenceServiceServicer_to_server(servicer, server),
        serving_at_start=False,
        deserializers={"Infer": INFER_REQUEST.parse, "StreamInfer": STREAM_INFER_REQUEST.parse},
        serializers={"Infer": INFER_RESPONSE.serialize, "StreamInfer": STREAM_INFER_RESPONSE.serialize},
    )
    segments = HeadSegmentServicer(models, settings)
    describing = Binding(
        SEGMENT_SERVICE, lambda server: segment_pb2_grpc.add_SegmentServiceServicer_to_server(segments, server)
    )
    oip = OipServicer(
        HeadBackend(models, answerer, settings),
        limits=TensorLimits(max_size_bytes=settings.max_frame_bytes),
        credit=settings.credit,
        drain=drain,
        in_order=settings.oip_in_order,
    )
    bindings = [binding, describing, oip_binding(oip, serving_at_start=False)]
    return App("head", bindings, parts=[outcomes, *followers.values(), answerer], drain=drain)
