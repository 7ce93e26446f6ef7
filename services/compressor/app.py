"""Where the compressor's objects meet."""

from __future__ import annotations

from services.compressor.apply import Compressor
from services.compressor.config import CompressorSettings
from services.compressor.reports import Reports
from services.compressor.runs import Runs
from services.compressor.servicer import CompressionServicer
from services.compressor.store import Store
from splitmesh.api.compression.v1 import compression_pb2, compression_pb2_grpc
from splitmesh.client.trust import registry_client
from splitmesh.kernel.lifecycle import App, Kernel
from splitmesh.kernel.server import Binding
from splitmesh.kernel.streams import Drain

ABOUT = "Applies recipes to versions: smaller models, a small wire, exits, leakage; what was begun survives a restart."

SERVICE_NAME = compression_pb2.DESCRIPTOR.services_by_name["CompressionService"].full_name


def build(settings: CompressorSettings, kernel: Kernel) -> App:
    """The compressor, not started."""
    drain = Drain()
    store = Store(settings.data_dir)
    compressor = Compressor(registry_client(settings, kernel.channels), store, settings)
    runs = Runs(
        store,
        compressor,
        max_running=settings.max_running,
        max_queued=settings.max_queued,
        max_kept=settings.max_kept,
        watch_stream_s=settings.watch_stream_s,
        drain=drain,
    )
    servicer = CompressionServicer(compressor, runs, Reports(store, max_bytes=settings.max_frame_bytes))
    binding = Binding(
        SERVICE_NAME, lambda server: compression_pb2_grpc.add_CompressionServiceServicer_to_server(servicer, server)
    )
    return App("compressor", [binding], [runs], drain)
