"""Where the registry's objects meet."""

from __future__ import annotations

import grpc

from services.registry.blobs import BlobFolder, BlobLimits
from services.registry.check import CheckLimits, ModelCheck
from services.registry.config import RegistrySettings
from services.registry.folder_lock import FolderLock
from services.registry.limits import Slots
from services.registry.profiles import Profiles
from services.registry.pull import Pull
from services.registry.push import Push
from services.registry.servicer import RegistryServicer
from services.registry.sqlite_store import SqliteStore
from services.registry.versions import Versions
from services.registry.watch import AliasWatch
from splitmesh.api.registry.v1.registry_pb2 import DESCRIPTOR
from splitmesh.api.registry.v1.registry_pb2_grpc import add_RegistryServiceServicer_to_server
from splitmesh.kernel.lifecycle import App, Kernel
from splitmesh.kernel.server import Binding
from splitmesh.kernel.streams import Drain


def build(settings: RegistrySettings, kernel: Kernel) -> App:
    """The registry, not started."""
    drain = Drain()
    lock = FolderLock(settings.data_dir)
    store = SqliteStore(settings.data_dir / "registry.sqlite3")
    blobs = BlobFolder(
        settings.data_dir,
        BlobLimits(
            max_artifact_bytes=settings.max_artifact_bytes,
            max_store_bytes=settings.max_store_bytes,
            min_free_bytes=settings.min_free_bytes,
            upload_wait_s=settings.upload_wait_s,
            stale_upload_s=settings.stale_upload_s,
            sweep_every_s=settings.sweep_every_s,
        ),
    )
    check = ModelCheck(
        CheckLimits(
            check_memory_bytes=settings.check_memory_bytes,
            check_cpu_s=settings.check_cpu_s,
            check_deadline_s=settings.check_deadline_s,
            max_checks=settings.max_checks,
        )
    )
    watch = AliasWatch(store, Slots("watches", settings.max_watchers), stream_s=settings.watch_stream_s, drain=drain)
    servicer = RegistryServicer(
        blobs,
        Push(
            blobs,
            Slots("uploads", settings.max_uploads),
            idle_s=settings.upload_idle_s,
            stream_s=settings.upload_stream_s,
        ),
        Pull(blobs, Slots("downloads", settings.max_downloads)),
        Versions(store, blobs, check, watch, max_artifacts=settings.max_artifacts_per_version),
        watch,
        Profiles(store, max_reply_bytes=settings.max_frame_bytes),
        send_idle_s=settings.send_idle_s,
    )

    def add(server: grpc.aio.Server) -> None:
        add_RegistryServiceServicer_to_server(servicer, server)

    name = DESCRIPTOR.services_by_name["RegistryService"].full_name
    return App("registry", [Binding(name, add)], parts=(lock, store, blobs, watch), drain=drain)
