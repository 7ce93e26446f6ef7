"""Asks the partitioner where to cut a model, and to cut it.

Knows the service by its name; the calls take as long as profiling and cutting take, so each has a deadline of its own
that covers the stated budget, waiting in line and the transfer of artefacts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from splitmesh.api.partition.v1 import partition_pb2, partition_pb2_grpc
from splitmesh.kernel.channels import Channels, mesh_errors

SERVICE = "partitioner"
DEFAULT_BUDGET_S = 20.0
MARGIN_S = 150.0
"""On top of a budget: fetching the model, starting the child process, measuring sizes, waiting behind another job."""

SPLIT_DEADLINE_S = 360.0


@dataclass(frozen=True, slots=True)
class CutInfo:
    """Times and sizes at one cut, per sample."""

    tensors: tuple[str, ...]
    position: float
    """Share of the model's arithmetic before the cut, 0..1."""
    head_ms: float
    tail_ms: float
    measured: bool
    """False: the times are interpolated."""
    raw_bytes: int
    wire_bytes: Mapping[str, int]
    """By codec."""
    escalation: float | None
    """Share of samples that an exit here would leave to the tail; None: none was tried."""


@dataclass(frozen=True, slots=True)
class ProfileInfo:
    """A model on the partitioner's node."""

    whole_ms: float
    cuts: tuple[CutInfo, ...]
    """From the input to the output."""
    calibration: str
    """``real`` or ``random`` inputs."""


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One way to run the model, means per sample."""

    kind: str
    """EDGE_ONLY, CLOUD_ONLY, SPLIT or CASCADE."""
    cut: tuple[str, ...]
    codec: str
    latency_ms: float
    stages: Mapping[str, float]
    """Milliseconds: edge_ms, encode_ms, link_ms, rtt_ms, cloud_ms."""
    uplink_bytes: float
    throughput_fps: float
    feasible: bool
    refused_because: str


@dataclass(frozen=True, slots=True)
class PlanInfo:
    """Every option, the best first, and why it is the best."""

    options: tuple[PlanRow, ...]
    why: str


@dataclass(frozen=True, slots=True)
class SplitResult:
    """The version that a split made."""

    version: int
    max_abs_error: float
    """Largest difference between head + tail and the whole, as a share of an output's largest magnitude."""


class PartitionClient:
    """Calls PartitionService. Every method raises the service's MeshErrors, see its proto."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels

    async def profile(self, model: str, version: int, *, budget_s: float = DEFAULT_BUDGET_S) -> ProfileInfo:
        """Times of the version's cuts; measured for at most ``budget_s`` seconds unless known already."""
        request = partition_pb2.ProfileModelRequest(model=model, version=version, budget_s=budget_s)
        async with mesh_errors():
            response = await (await self._stub()).ProfileModel(request, timeout=budget_s + MARGIN_S)
        cuts = (
            CutInfo(
                tensors=tuple(cut.tensors),
                position=cut.position,
                head_ms=cut.head_ms,
                tail_ms=cut.tail_ms,
                measured=cut.measured,
                raw_bytes=cut.raw_bytes,
                wire_bytes=dict(cut.wire_bytes),
                escalation=cut.escalation if cut.HasField("escalation") else None,
            )
            for cut in response.cuts
        )
        return ProfileInfo(response.whole_ms, tuple(cuts), response.calibration)

    async def plan(
        self,
        model: str,
        version: int,
        *,
        uplink_mbps: float,
        rtt_ms: float,
        edge_slowdown: float = 1.0,
        cloud_speedup: float = 1.0,
        picture_stays_on_site: bool = False,
        max_head_bytes: int = 0,
        escalation: float | None = None,
        picture_bytes: int = 0,
        budget_s: float = DEFAULT_BUDGET_S,
    ) -> PlanInfo:
        """Rank the ways to run a version over a link.

        Args:
            model: by name.
            version: its number.
            uplink_mbps: megabits per second the edge can send.
            rtt_ms: round trip of an empty message.
            edge_slowdown: time of the edge host over time of the partitioner's node.
            cloud_speedup: time of the partitioner's node over time of the cloud host.
            picture_stays_on_site: refuse "cloud only".
            max_head_bytes: largest head the edge holds; 0: any.
            escalation: expected share of hard samples, 0..1; None: as measured at each cut.
            picture_bytes: of one picture as the camera sends it; 0: measured on the calibration pictures.
            budget_s: most seconds to spend when the version was never profiled.
        """
        request = partition_pb2.PlanPartitionRequest(
            model=model,
            version=version,
            uplink_mbps=uplink_mbps,
            rtt_ms=rtt_ms,
            edge_slowdown=edge_slowdown,
            cloud_speedup=cloud_speedup,
            picture_stays_on_site=picture_stays_on_site,
            max_head_bytes=max_head_bytes,
            escalation=escalation,
            picture_bytes=picture_bytes,
            budget_s=budget_s,
        )
        async with mesh_errors():
            response = await (await self._stub()).PlanPartition(request, timeout=budget_s + MARGIN_S)
        rows = (
            PlanRow(
                kind=option.kind,
                cut=tuple(option.cut),
                codec=option.codec,
                latency_ms=option.latency_ms,
                stages=dict(option.stages),
                uplink_bytes=option.uplink_bytes,
                throughput_fps=option.throughput_fps,
                feasible=option.feasible,
                refused_because=option.refused_because,
            )
            for option in response.options
        )
        return PlanInfo(tuple(rows), response.why)

    async def split(self, model: str, version: int, cut: Sequence[str]) -> SplitResult:
        """Cut a version; the halves are a new version. Repeating the call gives the same version."""
        request = partition_pb2.SplitModelRequest(model=model, version=version, cut=cut)
        async with mesh_errors():
            response = await (await self._stub()).SplitModel(request, timeout=SPLIT_DEADLINE_S)
        return SplitResult(response.version, response.max_abs_error)

    async def _stub(self) -> partition_pb2_grpc.PartitionServiceStub:
        return partition_pb2_grpc.PartitionServiceStub(await self._channels.to(SERVICE))
