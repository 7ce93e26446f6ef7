"""Where the registry's objects meet."""

from __future__ import annotations

import grpc

from services.registry.aliases import Aliases
from services.registry.check import CheckLimits, ModelCheck
from services.registry.config import RegistrySettings
from services.registry.content.port import ContentStore
from services.registry.datasets.check import ManifestCheck
from services.registry.datasets.datasets import Datasets
from services.registry.datasets.servicer import DatasetServicer
from services.registry.delta import Deltas
from services.registry.events import Events
from services.registry.garbage import Garbage, Pins
from services.registry.limits import Slots
from services.registry.needs import OlderNeeds
from services.registry.profiles import Profiles
from services.registry.pull import Pull
from services.registry.push import Push
from services.registry.rules import Rules
from services.registry.servicer import RegistryServicer
from services.registry.signatures import Signatures
from services.registry.small import SmallContents
from services.registry.stores import Claim, content_store, metadata_store
from services.registry.versions import Versions
from services.registry.watch import ModelWatch
from splitmesh.api.datasets.v1 import datasets_pb2
from splitmesh.api.datasets.v1.datasets_pb2_grpc import add_DatasetServiceServicer_to_server
from splitmesh.api.registry.v1 import registry_pb2
from splitmesh.api.registry.v1.registry_pb2_grpc import add_RegistryServiceServicer_to_server
from splitmesh.kernel.lifecycle import App, Kernel
from splitmesh.kernel.server import Binding
from splitmesh.kernel.streams import Drain
from splitmesh.sql.folder_lock import FolderLock
from splitmesh.sql.times import utc_now


def build(settings: RegistrySettings, kernel: Kernel) -> App:
    """The registry, not started."""
    drain = Drain()
    lock = FolderLock(settings.data_dir, "registry")
    store, contents = metadata_store(settings, kernel.give_up), content_store(settings)
    claim = Claim(store, contents, adopt=settings.contents_adopt)
    older_needs = OlderNeeds(store, contents)
    limits = CheckLimits(
        check_memory_bytes=settings.check_memory_bytes,
        check_cpu_s=settings.check_cpu_s,
        check_deadline_s=settings.check_deadline_s,
        max_checks=settings.max_checks,
    )
    pins = Pins()
    watch = ModelWatch(store, Slots("watches", settings.max_watchers), stream_s=settings.watch_stream_s, drain=drain)
    signatures = Signatures(store, settings.trust_root, watch.keyring)
    versions = Versions(
        store,
        contents,
        pins,
        ModelCheck(limits),
        signatures,
        watch,
        max_artifacts=settings.max_artifacts_per_version,
        max_page_bytes=settings.max_frame_bytes // 2,
    )
    aliases = Aliases(store, watch, utc_now)
    garbage = Garbage(
        contents,
        store,
        pins,
        every_s=settings.garbage_every_s,
        min_age_s=settings.garbage_min_age_s,
        now=utc_now,
    )
    datasets = Datasets(store, contents, signatures, pins, ManifestCheck(limits))
    push, pull, small = _transfers(settings, contents)
    deltas = _deltas(settings, contents)
    rules = Rules(
        contents=contents,
        push=push,
        pull=pull,
        small=small,
        deltas=deltas,
        versions=versions,
        aliases=aliases,
        watch=watch,
        signatures=signatures,
        garbage=garbage,
        events=Events(store),
        profiles=Profiles(store, max_reply_bytes=settings.max_frame_bytes),
        send_idle_s=settings.send_idle_s,
    )
    return App(
        "registry",
        _bindings(rules, datasets),
        parts=(
            lock,
            store,
            contents,
            claim,
            older_needs,
            deltas,
            watch,
            signatures,
            versions,
            aliases,
            datasets,
            garbage,
        ),
        drain=drain,
    )


def _transfers(settings: RegistrySettings, contents: ContentStore) -> tuple[Push, Pull, SmallContents]:
    rate = settings.transfer_bytes_per_s
    uploads = Slots.at_rate("uploads", settings.max_uploads, rate)
    downloads = Slots.at_rate("downloads", settings.max_downloads, rate)
    idle_s, stream_s = settings.upload_idle_s, settings.upload_stream_s
    push = Push(contents, uploads, idle_s=idle_s, stream_s=stream_s, bytes_per_s=rate)
    pull = Pull(contents, downloads, bytes_per_s=rate)
    small = SmallContents(contents, uploads, downloads, idle_s=idle_s, stream_s=stream_s, up=push.rate, down=pull.rate)
    return push, pull, small


def _deltas(settings: RegistrySettings, contents: ContentStore) -> Deltas:
    return Deltas(
        contents,
        Slots("patches", settings.max_deltas),
        max_bytes=settings.max_delta_bytes,
        max_share=settings.max_delta_share,
        folder=settings.data_dir / "patches",
    )


def _bindings(rules: Rules, datasets: Datasets) -> list[Binding]:
    models, pictures = RegistryServicer(rules), DatasetServicer(datasets)

    def add_models(server: grpc.aio.Server) -> None:
        add_RegistryServiceServicer_to_server(models, server)

    def add_pictures(server: grpc.aio.Server) -> None:
        add_DatasetServiceServicer_to_server(pictures, server)

    return [
        Binding(registry_pb2.DESCRIPTOR.services_by_name["RegistryService"].full_name, add_models),
        Binding(datasets_pb2.DESCRIPTOR.services_by_name["DatasetService"].full_name, add_pictures),
    ]
