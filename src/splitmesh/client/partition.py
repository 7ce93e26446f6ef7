"""Asks the partitioner where to cut a model, and to cut it.

Knows the service by its name; the calls take as long as profiling and cutting take, so each has a deadline of its own
that covers the stated budget, waiting in line and the transfer of artefacts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from splitmesh.api.partition.v1 import partition_pb2, partition_pb2_grpc
from splitmesh.client.profiles import profile_from_message
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import Channels, mesh_errors
from splitmesh.model.placement.problem import Objective
from splitmesh.model.plan_options import Certificate, TierShare
from splitmesh.model.plan_record import Cuts, PlanRecord
from splitmesh.model.profile_data import Profile

SERVICE = "partitioner"
DEFAULT_BUDGET_S = 20.0
MARGIN_S = 150.0
"""On top of a budget: fetching the model, starting the child process, measuring sizes, waiting behind another job."""

PROFILE_MARGIN_S = 300.0
"""The same for a profile, whose budget may be spent twice: on times and on trying exits."""

SPLIT_DEADLINE_S = 360.0


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
    """An unlimited one is infinite."""
    feasible: bool
    refused_because: str
    agreement: float | None
    """Share of samples answered as by the whole model on the original picture; None: not known."""
    head_bytes: int
    measured: bool
    """False: some of its times are interpolated."""
    tiers: tuple[TierShare, ...] = ()
    """Over more than two tiers: what runs where."""


@dataclass(frozen=True, slots=True)
class PlanInfo:
    """Every option, the best first, and why it is the best."""

    options: tuple[PlanRow, ...]
    why: str
    certificate: Certificate | None
    """How much better any cut of the graph could be; None: the profiles hold no common graph."""
    record: PlanRecord | None = None
    """For a version that is made because of it: see :meth:`PartitionClient.split`. None: see ``no_record``."""
    no_record: str = ""
    """Why there is none that can be kept; empty: there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MiddleTier:
    """A host between edge and cloud."""

    name: str
    uplink_mbps: float
    """From here to the next tier."""
    rtt_ms: float
    node: str = ""
    """Whose own profile is used; empty: the partitioner's times ``slowdown``."""
    slowdown: float = 1.0
    max_model_bytes: int = 0
    """0: any."""


@dataclass(frozen=True, slots=True)
class SplitResult:
    """The version that a split made."""

    version: int
    max_abs_error: float
    """Largest difference between the segments, one after the other, and the whole, as a share of an output's largest
    magnitude."""
    cuts: Cuts = ()
    """Where it was cut, from the input on."""


class PartitionClient:
    """Calls PartitionService. Every method raises the service's MeshErrors, see its proto."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels

    async def profile(
        self,
        model: str,
        version: int,
        *,
        node: str = "",
        batch: int = 1,
        threads: int = 0,
        backend: str = "",
        budget_s: float = DEFAULT_BUDGET_S,
        restart: bool = False,
        on_progress: Callable[[str, float], None] | None = None,
    ) -> Profile:
        """Times and sizes of the version's cuts on a node, measured unless they are known completely.

        Args:
            model: by name.
            version: its number.
            node: a head or a tail by its name; empty: the partitioner's own.
            batch: samples per run.
            threads: inside one operator; 0: as the node computes.
            backend: execution provider; empty: as the node computes.
            budget_s: about how long it may take; what was measured by then is kept, and the next call goes on.
            restart: forget what was measured.
            on_progress: told what begins and the share that is done, 0..1.
        """
        request = partition_pb2.ProfileModelRequest(
            model=model,
            version=version,
            budget_s=budget_s,
            node=node,
            batch=batch,
            threads=threads,
            backend=backend,
            restart=restart,
        )
        async with mesh_errors():
            call = (await self._stub()).ProfileModel(request, timeout=2 * budget_s + PROFILE_MARGIN_S)
            try:
                async for response in call:
                    if response.HasField("profile"):
                        return profile_from_message(response.profile)
                    if on_progress is not None:
                        on_progress(response.progress.step, response.progress.share)
            finally:
                call.cancel()
        raise MeshError(Reason.PROTOCOL_VIOLATION, "the partitioner ended the call without a profile")

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
        edge_node: str = "",
        cloud_node: str = "",
        objective: Objective = Objective.LATENCY,
        frames_per_s: float = 0.0,
        uplink_budget_bytes_per_s: float = 0.0,
        max_leakage: float | None = None,
        kept_on_edge: Sequence[str] = (),
        unsupported_on_edge: Sequence[str] = (),
        between: Sequence[MiddleTier] = (),
        budget_s: float = DEFAULT_BUDGET_S,
    ) -> PlanInfo:
        """Rank the ways to run a version over a link, or over a chain of tiers.

        Args:
            model: by name.
            version: its number.
            uplink_mbps: megabits per second the edge can send.
            rtt_ms: round trip of an empty message.
            edge_slowdown: time of the edge host over time of the partitioner's node; not used with ``edge_node``.
            cloud_speedup: time of the partitioner's node over time of the cloud host; not used with ``cloud_node``.
            picture_stays_on_site: refuse "cloud only".
            max_head_bytes: largest head the edge holds; 0: any.
            escalation: expected share of hard samples, 0..1; None: as measured at each cut.
            picture_bytes: of one picture as the camera sends it; 0: measured on the calibration pictures.
            edge_node: whose own times are the edge's, measured where they are not known.
            cloud_node: likewise.
            objective: what to rank by.
            frames_per_s: what the line delivers; 0: not known.
            uplink_budget_bytes_per_s: most on the uplink; needs ``frames_per_s``; 0: any.
            max_leakage: highest SSIM of a reconstruction of the picture from what crosses; None: any.
            kept_on_edge: tensors that may not cross.
            unsupported_on_edge: types of operators that the edge cannot run.
            between: tiers between the edge and the cloud, nearest to the camera first.
            budget_s: most seconds to spend on each profile that is not known.
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
            edge_node=edge_node,
            cloud_node=cloud_node,
            objective=partition_pb2.Objective.Value(f"OBJECTIVE_{objective.value}"),
            frames_per_s=frames_per_s,
            uplink_budget_bytes_per_s=uplink_budget_bytes_per_s,
            max_leakage=max_leakage,
            kept_on_edge=kept_on_edge,
            unsupported_on_edge=unsupported_on_edge,
            between=[partition_pb2.Tier(**asdict(tier)) for tier in between],
            budget_s=budget_s,
        )
        async with mesh_errors():
            response = await (await self._stub()).PlanPartition(
                request, timeout=(2 + len(between)) * budget_s + MARGIN_S
            )
        sure = response.certificate
        return PlanInfo(
            tuple(_row(option) for option in response.options),
            response.why,
            Certificate(sure.lower_bound_ms, sure.gap_ms, sure.method) if response.HasField("certificate") else None,
            *_record(response.plan_json),
        )

    async def split(
        self,
        model: str,
        version: int,
        cut: Sequence[str] = (),
        further: Sequence[Sequence[str]] = (),
        *,
        plan: PlanRecord | None = None,
    ) -> SplitResult:
        """Cut a version; the segments are a new version. Repeating the call gives the same version.

        Args:
            model: by name.
            version: its number.
            cut: tensors of the first cut; may be empty with a plan, whose best cut is then made.
            further: cuts behind the first, in order; it becomes a chain of more segments than two.
            plan: of the same whole model, kept with the new version; it must have these cuts and not refuse them.
        """
        points = [partition_pb2.CutPoint(tensors=tensors) for tensors in further]
        text = "" if plan is None else plan.to_json()
        request = partition_pb2.SplitModelRequest(model=model, version=version, cut=cut, further=points, plan_json=text)
        async with mesh_errors():
            response = await (await self._stub()).SplitModel(request, timeout=SPLIT_DEADLINE_S)
        cuts = tuple(tuple(point.tensors) for point in response.cuts)
        return SplitResult(response.version, response.max_abs_error, cuts)

    async def adapt(self, model: str, versions: Sequence[int], *, uplink_mbps: float, rtt_ms: float) -> int:
        """The number of a version that heads run in the cheapest of these ways, beginning with the first."""
        request = partition_pb2.AdaptModelRequest(
            model=model, versions=versions, uplink_mbps=uplink_mbps, rtt_ms=rtt_ms
        )
        async with mesh_errors():
            response = await (await self._stub()).AdaptModel(request, timeout=DEFAULT_BUDGET_S + MARGIN_S)
        return int(response.version)

    async def _stub(self) -> partition_pb2_grpc.PartitionServiceStub:
        return partition_pb2_grpc.PartitionServiceStub(await self._channels.to(SERVICE))


def _record(text: str) -> tuple[PlanRecord | None, str]:
    """Of a plan, or why there is none: its options count without it."""
    try:
        return (PlanRecord.from_json(text), "") if text else (None, "the partitioner is too old to give one to keep")
    except MeshError as error:
        return None, f"the partitioner may be newer than this program: {error.message}"


def _row(option: partition_pb2.PlanOption) -> PlanRow:
    return PlanRow(
        kind=option.kind,
        cut=tuple(option.cut),
        codec=option.codec,
        latency_ms=option.latency_ms,
        stages=dict(option.stages),
        uplink_bytes=option.uplink_bytes,
        throughput_fps=option.throughput_fps,
        feasible=option.feasible,
        refused_because=option.refused_because,
        agreement=option.agreement if option.HasField("agreement") else None,
        head_bytes=option.head_bytes,
        measured=option.measured,
        tiers=tuple(
            TierShare(share.tier, share.compute_ms, tuple(share.cut), share.uplink_bytes, share.link_ms)
            for share in option.tiers
        ),
    )
