"""Where the partitioner's objects meet."""

from __future__ import annotations

from services.partitioner.adapt import Adapter
from services.partitioner.config import PartitionerSettings
from services.partitioner.measure import Measurer
from services.partitioner.measurement import Means
from services.partitioner.partition import Partitioner
from services.partitioner.servicer import PartitionServicer
from splitmesh.api.partition.v1 import partition_pb2, partition_pb2_grpc
from splitmesh.client.node_profiler import NodeProfiler
from splitmesh.client.trust import registry_client
from splitmesh.kernel.jobs import JobSlots
from splitmesh.kernel.lifecycle import App, Kernel
from splitmesh.kernel.server import Binding

ABOUT = "Profiles registered models, plans where to cut them and makes split versions."

SERVICE_NAME = partition_pb2.DESCRIPTOR.services_by_name["PartitionService"].full_name


def build(settings: PartitionerSettings, kernel: Kernel) -> App:
    """The partitioner, not started."""
    registry = registry_client(settings, kernel.channels)
    nodes = NodeProfiler(kernel.channels, settings.profiled_services.split(","))
    slots = JobSlots(settings.max_running_jobs, settings.max_waiting_jobs)
    partitioner = Partitioner(registry, Measurer(Means(registry, nodes, settings), slots), slots, settings)
    servicer = PartitionServicer(partitioner, Adapter(registry, partitioner, settings))
    binding = Binding(
        SERVICE_NAME, lambda server: partition_pb2_grpc.add_PartitionServiceServicer_to_server(servicer, server)
    )
    return App("partitioner", [binding])
