"""Where the head's objects meet."""

from __future__ import annotations

from edge.head.answer import Answerer
from edge.head.audits import Audits
from edge.head.config import HeadSettings
from edge.head.follow import ModelFollower, Models
from edge.head.observers import Observers
from edge.head.oip import HeadBackend
from edge.head.report import Outcomes
from edge.head.samples.keeper import SampleKeeper
from edge.head.samples.servicer import SampleServicer
from edge.head.samples.servicer import binding as samples_binding
from edge.head.segment_servicer import HeadSegmentServicer
from edge.head.servicer import InferenceServicer
from edge.head.stream import FrameStreams
from edge.head.uplink.budget import Budget
from splitmesh.api.inference.v1 import inference_pb2_grpc
from splitmesh.api.segment.v1 import segment_pb2_grpc
from splitmesh.client.routing import RoutingClient
from splitmesh.client.shares import ShareClient
from splitmesh.client.trust import registry_client
from splitmesh.kernel.large_fields import (
    INFER_REQUEST,
    INFER_RESPONSE,
    STREAM_INFER_REQUEST,
    STREAM_INFER_RESPONSE,
)
from splitmesh.kernel.lifecycle import App, Kernel, Part
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

    budget = Budget(settings, ShareClient(kernel.channels), lambda: models.loaded())
    audits = Audits(settings, kernel.telemetry, budget, lambda frame, tail: observers.audited(frame, tail))
    registry = registry_client(settings, kernel.channels)
    followers = {
        name: ModelFollower(name, settings, kernel.channels, registry, serving, audits.set_share)
        for name in settings.model_names()
    }
    models = Models(followers)
    outcomes = Outcomes(
        RoutingClient(kernel.channels), settings.node, settings.report_interval_s, models.loaded, drain=audits.drain
    )
    keeper = SampleKeeper(settings)
    observers = Observers([outcomes, keeper])
    answerer = Answerer(
        models, settings, kernel.telemetry, outcomes, budget=budget, audits=audits, observers=[observers]
    )
    servicer = InferenceServicer(answerer, FrameStreams(answerer, settings, drain))
    binding = Binding(
        SERVICE,
        lambda server: inference_pb2_grpc.add_InferenceServiceServicer_to_server(servicer, server),
        serving_at_start=False,
        deserializers={"Infer": INFER_REQUEST.parse, "StreamInfer": STREAM_INFER_REQUEST.parse},
        serializers={"Infer": INFER_RESPONSE.serialize, "StreamInfer": STREAM_INFER_RESPONSE.serialize},
    )
    segments = HeadSegmentServicer(models, settings, registry.withdrawn)
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
    samples = SampleServicer(settings)
    bindings = [binding, describing, oip_binding(oip, serving_at_start=False), samples_binding(samples)]
    # Stopped the other way round: audits let go of versions before these are unloaded, and the last report is made last.
    parts: list[Part] = [outcomes, keeper, samples, budget, *followers.values(), audits, answerer]
    return App("head", bindings, parts=parts, drain=drain)
