"""Where the tail's objects meet."""

from __future__ import annotations

from cloud.tail.config import TailSettings
from cloud.tail.run import RunStreams
from cloud.tail.segments import Segments
from cloud.tail.servicer import SegmentServicer
from splitmesh.api.segment.v1 import segment_pb2_grpc
from splitmesh.client.cache import ModelCache
from splitmesh.client.registry import RegistryClient
from splitmesh.kernel.lifecycle import App, Kernel
from splitmesh.kernel.profiling import PieceTimer
from splitmesh.kernel.server import Binding
from splitmesh.kernel.streams import Drain
from splitmesh.runtime.ort import CPU


def build(settings: TailSettings, kernel: Kernel) -> App:
    """The tail, not started."""
    drain = Drain()
    registry = RegistryClient(kernel.channels)
    segments = Segments(ModelCache(settings.data_dir, registry, max_bytes=settings.max_cache_bytes), settings)
    timer = PieceTimer(settings, settings.compute_threads, CPU)
    servicer = SegmentServicer(RunStreams(segments, settings, kernel.telemetry, drain, kernel.channels), timer)
    binding = Binding(
        "splitmesh.api.segment.v1.SegmentService",
        lambda server: segment_pb2_grpc.add_SegmentServiceServicer_to_server(servicer, server),
    )
    return App(settings.service, [binding], parts=[segments], drain=drain)
