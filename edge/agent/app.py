"""Where the agent's objects meet."""

from __future__ import annotations

import asyncio

from edge.agent.capabilities import HostCapabilities
from edge.agent.config import AgentSettings
from edge.agent.connection import FleetConnection
from edge.agent.desired import Desired
from edge.agent.desk import Kinds, TaskDesk
from edge.agent.heads import Heads
from edge.agent.outbox import Outbox
from edge.agent.runners.collect import CollectRunner
from edge.agent.runners.deploy import DeployRunner
from edge.agent.runners.profile import ProfileRunner
from edge.agent.spooled import spooled
from edge.agent.store import AgentStore
from edge.agent.vitals import Vitals
from splitmesh.api.fleet.v1 import fleet_pb2
from splitmesh.client.datasets import DatasetClient
from splitmesh.client.fleet_stream import LINK
from splitmesh.client.node_profiler import NodeProfiler
from splitmesh.client.registry import RegistryClient
from splitmesh.client.trust import trust_for
from splitmesh.kernel.channels import Channels
from splitmesh.kernel.lifecycle import App, Kernel
from splitmesh.sql.folder_lock import FolderLock


def build(settings: AgentSettings, kernel: Kernel) -> App:
    """The agent, not started."""
    store = AgentStore(settings.data_dir)
    desired = Desired(store)
    heads = Heads(
        kernel.channels, settings.head_service, settings.head_names(), desired, silence_s=settings.head_silence_s
    )
    trust = trust_for(settings, kernel.channels)
    registry = RegistryClient(kernel.channels, trust=trust)
    datasets = DatasetClient(kernel.channels, trust=trust)
    profiler = NodeProfiler(kernel.channels, [settings.head_service])
    runners: Kinds = {
        fleet_pb2.TASK_KIND_DEPLOY: DeployRunner(desired, heads),
        fleet_pb2.TASK_KIND_PROFILE: ProfileRunner(registry, profiler, heads.addresses),
        fleet_pb2.TASK_KIND_COLLECT: CollectRunner(
            registry, datasets, heads.addresses, settings.node, settings.datasets_dir, settings.sharing
        ),
    }
    outbox = Outbox(lambda task_id: desk.update(task_id))
    desk = TaskDesk(store, runners, outbox.task, max_running=settings.max_tasks, max_held=settings.max_held_tasks)

    async def tell_capabilities() -> None:
        outbox.capabilities(await capabilities.message(0.0))

    capabilities = HostCapabilities(list(runners), settings.host_check_s, tell_capabilities)
    connection = FleetConnection(
        settings,
        Channels(kernel.channels.discovery, max_frame_bytes=settings.max_frame_bytes, more=LINK),
        desk,
        outbox,
        desired,
        heads,
        capabilities,
        Vitals(settings.data_dir),
        lambda: spooled(settings.head_data_dir),
    )
    return App(
        "agent",
        [],
        parts=[
            FolderLock(settings.data_dir, "agent"),
            _Opened(store, desired),
            heads,
            capabilities,
            desk,
            connection,
        ],
    )


class _Opened:
    """The store and what is read from it, as a part of the app."""

    def __init__(self, store: AgentStore, desired: Desired) -> None:
        self._store = store
        self._desired = desired

    async def start(self) -> None:
        """Opened and read when it returns."""
        await asyncio.to_thread(self._store.open)
        await self._desired.load()

    async def stop(self) -> None:
        """Closed when it returns."""
        await asyncio.to_thread(self._store.close)
