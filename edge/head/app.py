"""Where the head's objects meet."""

from __future__ import annotations

from edge.head.answer import Answerer
from edge.head.config import HeadSettings
from edge.head.follow import ModelFollower, Models
from edge.head.report import Outcomes
from edge.head.servicer import InferenceServicer
from edge.head.stream import FrameStreams
from splitmesh.api.inference.v1 import inference_pb2_grpc
from splitmesh.client.routing import RoutingClient
from splitmesh.kernel.lifecycle import App, Kernel
from splitmesh.kernel.server import Binding
from splitmesh.kernel.streams import Drain

SERVICE = "splitmesh.api.inference.v1.InferenceService"


def build(settings: HeadSettings, kernel: Kernel) -> App:
    """The head, not started."""
    drain = Drain()

    async def serving() -> None:
        await kernel.health.set(SERVICE, True)

    followers = {name: ModelFollower(name, settings, kernel.channels, serving) for name in settings.model_names()}
    outcomes = Outcomes(RoutingClient(kernel.channels), settings.node, settings.report_interval_s)
    answerer = Answerer(Models(followers), settings, kernel.telemetry, outcomes)
    servicer = InferenceServicer(answerer, FrameStreams(answerer, settings, drain))
    binding = Binding(
        SERVICE,
        lambda server: inference_pb2_grpc.add_InferenceServiceServicer_to_server(servicer, server),
        serving_at_start=False,
    )
    return App("head", [binding], parts=[outcomes, *followers.values(), answerer], drain=drain)
