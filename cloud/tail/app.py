"""Where the tail's objects meet."""

from __future__ import annotations

from cloud.tail.config import TailSettings
from cloud.tail.oip import TailBackend
from cloud.tail.run import RunStreams
from cloud.tail.segments import Segments
from cloud.tail.servicer import SegmentServicer
from splitmesh.api.segment.v1 import segment_pb2_grpc
from splitmesh.client.cache import ModelCache
from splitmesh.client.registry import RegistryClient
from splitmesh.client.trust import trust_for
from splitmesh.client.trust_news import TrustNews
from splitmesh.kernel.large_fields import RUN_REQUEST, RUN_RESPONSE
from splitmesh.kernel.lifecycle import App, Kernel
from splitmesh.kernel.profiling import PieceTimer
from splitmesh.kernel.server import Binding
from splitmesh.kernel.streams import Drain
from splitmesh.oip.servicer import OipServicer
from splitmesh.oip.servicer import binding as oip_binding
from splitmesh.runtime.providers import preferred
from splitmesh.tensor import TensorLimits


def build(settings: TailSettings, kernel: Kernel) -> App:
    """The tail, not started."""
    drain = Drain()
    trust = trust_for(settings, kernel.channels)
    registry = RegistryClient(kernel.channels, trust=trust)
    cache = ModelCache(settings.data_dir, registry, max_bytes=settings.max_cache_bytes)
    segments = Segments(cache, settings)
    timer = PieceTimer(settings, settings.compute_threads, preferred(settings.providers))
    streams = RunStreams(segments, settings, kernel.telemetry, drain, kernel.channels)
    servicer = SegmentServicer(streams, timer, registry.withdrawn)
    binding = Binding(
        "splitmesh.api.segment.v1.SegmentService",
        lambda server: segment_pb2_grpc.add_SegmentServiceServicer_to_server(servicer, server),
        deserializers={"Run": RUN_REQUEST.parse},
        serializers={"Run": RUN_RESPONSE.serialize},
    )
    backend = TailBackend(segments, cache, registry, settings, kernel.telemetry)
    oip = OipServicer(
        backend,
        limits=TensorLimits(max_size_bytes=settings.max_frame_bytes),
        credit=settings.credit,
        drain=drain,
        in_order=settings.oip_in_order,
    )
    bindings = [binding, oip_binding(oip, serving_at_start=True)]
    return App(settings.service, bindings, parts=[TrustNews(trust), segments, backend], drain=drain)
