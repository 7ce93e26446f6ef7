"""Where the head's objects meet."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from uuid import uuid4

from edge.head.answer import Answerer
from edge.head.audits import Audits
from edge.head.config import HeadSettings
from edge.head.follow import ModelFollower
from edge.head.memory import HostMemory
from edge.head.models import Models
from edge.head.observers import Observers
from edge.head.oip import HeadBackend
from edge.head.report import Outcomes
from edge.head.samples.keeper import SampleKeeper
from edge.head.samples.servicer import SampleServicer
from edge.head.samples.servicer import binding as samples_binding
from edge.head.segment_servicer import HeadSegmentServicer
from edge.head.servicer import InferenceServicer
from edge.head.serving.assignments import Held
from edge.head.serving.host_policy import HostPolicy, HostPolicyHolder
from edge.head.serving.servicer import ServingServicer
from edge.head.serving.servicer import binding as serving_binding
from edge.head.serving.states import States
from edge.head.shares import CpuShares
from edge.head.spooling import Spooling
from edge.head.stream import FrameStreams
from edge.head.trial.compare import Comparer
from edge.head.trial.labelled import LabelledTrials
from edge.head.uplink.budget import Budget
from splitmesh.api.inference.v1 import inference_pb2_grpc
from splitmesh.api.segment.v1 import segment_pb2_grpc
from splitmesh.client.records import RecordsClient
from splitmesh.client.routing import RoutingClient
from splitmesh.client.shares import ShareClient
from splitmesh.client.trust import registry_client
from splitmesh.kernel.large_fields import (
    INFER_REQUEST,
    INFER_RESPONSE,
    STREAM_INFER_REQUEST,
    STREAM_INFER_RESPONSE,
)
from splitmesh.kernel.lifecycle import App, Kernel, Part
from splitmesh.kernel.server import Binding
from splitmesh.kernel.streams import Drain
from splitmesh.oip.servicer import SERVICE as OIP_SERVICE
from splitmesh.oip.servicer import OipServicer
from splitmesh.oip.servicer import binding as oip_binding
from splitmesh.tensor import TensorLimits

SERVICE = "splitmesh.api.inference.v1.InferenceService"
SEGMENT_SERVICE = "splitmesh.api.segment.v1.SegmentService"


def build(settings: HeadSettings, kernel: Kernel) -> App:
    """The head, not started."""
    drain = Drain()

    async def serving(ready: bool) -> None:
        await kernel.health.set(SERVICE, ready)
        await kernel.health.set(OIP_SERVICE, ready)

    def follower(model: str, held: Held | None, on_active: Callable[[], Awaitable[None]]) -> ModelFollower:
        return ModelFollower(
            model,
            settings,
            kernel.channels,
            registry,
            on_active,
            audits.set_share,
            held=held,
            changed=partial(states.changed, model),
            priority=partial(host.priority_of, model),
            workers=partial(shares.workers_of, model),
            memory=memory,
        )

    def keep_to(policy: HostPolicy) -> None:
        for one in models.followers():
            one.set_priority(host.priority_of(one.model))
            one.look_again()
        shares.reweighed()
        states.changed("")

    budget = Budget(settings, ShareClient(kernel.channels), lambda: models.loaded())
    audits = Audits(settings, kernel.telemetry, budget, lambda frame, tail: observers.audited(frame, tail))
    registry = registry_client(settings, kernel.channels)
    host = HostPolicyHolder(settings.data_dir / "host-policy.json", settings.priority_of)
    shares = CpuShares(settings.workers, host.weight_of)
    memory = HostMemory(lambda: host.policy)
    models = Models(settings, follower, serving, on_gone=lambda model: states.gone(model))
    states = States(models.names, drain)
    host.subscribe(keep_to)
    spooling = Spooling(settings, RecordsClient(kernel.channels, tenant=settings.tenant))
    outcomes = Outcomes(
        RoutingClient(kernel.channels),
        settings.node,
        settings.report_interval_s,
        models.loaded,
        drain=audits.drain,
        spools=[spooling.disk, spooling.memory],
    )
    keeper = SampleKeeper(settings, told=spooling.sample_kept)
    observers = Observers([outcomes, keeper])
    answerer = Answerer(
        models, settings, kernel.telemetry, outcomes, budget=budget, audits=audits, observers=[observers], shares=shares
    )
    servicer = InferenceServicer(answerer, FrameStreams(answerer, settings, drain))
    binding = Binding(
        SERVICE,
        lambda server: inference_pb2_grpc.add_InferenceServiceServicer_to_server(servicer, server),
        serving_at_start=False,
        deserializers={"Infer": INFER_REQUEST.parse, "StreamInfer": STREAM_INFER_REQUEST.parse},
        serializers={"Infer": INFER_RESPONSE.serialize, "StreamInfer": STREAM_INFER_RESPONSE.serialize},
    )
    segments = HeadSegmentServicer(models, settings, registry.withdrawn)
    describing = Binding(
        SEGMENT_SERVICE, lambda server: segment_pb2_grpc.add_SegmentServiceServicer_to_server(segments, server)
    )
    oip = OipServicer(
        HeadBackend(models, answerer, settings),
        limits=TensorLimits(max_size_bytes=settings.max_frame_bytes),
        credit=settings.credit,
        drain=drain,
        in_order=settings.oip_in_order,
    )
    samples = SampleServicer(settings)
    told = ServingServicer(
        models, states, host, Comparer(models, answerer.others, settings), node=settings.node, source=uuid4().hex
    )
    trials = LabelledTrials(models, answerer.others, settings, every_s=settings.trial_labels_s)
    bindings = [
        binding,
        describing,
        oip_binding(oip, serving_at_start=False),
        samples_binding(samples),
        serving_binding(told),
    ]
    # Stopped the other way round: audits let go of versions before these are unloaded, the last report is made last, and kept.
    parts: list[Part] = [spooling, outcomes, keeper, samples, budget, host, models, trials, audits, answerer]
    return App("head", bindings, parts=parts, drain=drain)
