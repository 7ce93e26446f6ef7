"""Where the compressor's objects meet."""

from __future__ import annotations

from services.compressor.apply import Compressor
from services.compressor.config import CompressorSettings
from services.compressor.runs import Runs
from services.compressor.servicer import CompressionServicer
from splitmesh.api.compression.v1 import compression_pb2, compression_pb2_grpc
from splitmesh.client.registry import RegistryClient
from splitmesh.kernel.lifecycle import App, Kernel
from splitmesh.kernel.server import Binding
from splitmesh.kernel.streams import Drain

ABOUT = "Applies recipes to split versions: quantises what crosses the cut, attaches an exit."

SERVICE_NAME = compression_pb2.DESCRIPTOR.services_by_name["CompressionService"].full_name


def build(settings: CompressorSettings, kernel: Kernel) -> App:
    """The compressor, not started."""
    drain = Drain()
    runs = Runs(
        max_running=settings.max_running,
        max_queued=settings.max_queued,
        max_kept=settings.max_kept,
        watch_stream_s=settings.watch_stream_s,
        drain=drain,
    )
    servicer = CompressionServicer(Compressor(RegistryClient(kernel.channels), settings), runs)
    binding = Binding(
        SERVICE_NAME, lambda server: compression_pb2_grpc.add_CompressionServiceServicer_to_server(servicer, server)
    )
    return App("compressor", [binding], [runs], drain)
