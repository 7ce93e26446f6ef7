"""A link's streams and its load as messages: what a head tells of its tails."""

from __future__ import annotations

import time
from collections.abc import Sequence

from splitmesh.api.routing.v1 import routing_pb2
from splitmesh.api.segment.v1 import segment_pb2
from splitmesh.client.balance import Conduct
from splitmesh.client.link_estimate import LinkEstimator, LinkFacts
from splitmesh.client.tail_stream import TailStream

UNKNOWN = LinkFacts(goodput_mbps=0.0, rtt_ms=0.0, loss=0.0)


def uplink_message(
    stream: TailStream, opening: segment_pb2.Open, estimator: LinkEstimator | None
) -> segment_pb2.Uplink:
    """One stream as it is now. All streams of a link share one estimate of the way."""
    now_ms, standing = time.monotonic() * 1e3, stream.standing
    facts = UNKNOWN if estimator is None else estimator.facts()
    return segment_pb2.Uplink(
        node=stream.node,
        address=stream.address,
        model=opening.model,
        version=opening.version,
        state=_state(stream),
        in_flight=stream.in_flight,
        answered=standing.answered_frames,
        failed=standing.failed_frames,
        hedged=standing.hedged_frames,
        latency_ms=standing.latency_ms(now_ms),
        backlog_ms=standing.backlog_ms(now_ms),
        goodput_mbps=facts.goodput_mbps,
        rtt_ms=facts.rtt_ms,
        loss=facts.loss,
    )


def load_message(accepting: Sequence[TailStream], estimator: LinkEstimator | None) -> routing_pb2.UplinkLoad:
    """The link's load over the streams that take frames."""
    now_ms = time.monotonic() * 1e3
    facts = UNKNOWN if estimator is None else estimator.facts()
    return routing_pb2.UplinkLoad(
        backlog_ms=min((stream.standing.backlog_ms(now_ms) for stream in accepting), default=0.0),
        goodput_mbps=facts.goodput_mbps,
        rtt_ms=facts.rtt_ms,
        loss=facts.loss,
        tails=len(accepting),
    )


def _state(stream: TailStream) -> segment_pb2.UplinkState.ValueType:
    if stream.draining:
        return segment_pb2.UPLINK_STATE_DRAINING
    if not stream.credit:
        return segment_pb2.UPLINK_STATE_CONNECTING
    ejected = stream.standing.conduct is Conduct.EJECTED
    return segment_pb2.UPLINK_STATE_EJECTED if ejected else segment_pb2.UPLINK_STATE_OPEN
