"""One trace per frame, whichever of gateway, head and tail have somebody who takes their spans."""

from __future__ import annotations

import itertools
import logging

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from splitmesh.kernel.signals import Attr, Span
from splitmesh.kernel.telemetry import Telemetry, trace_context_of, trace_id_of, traceparent_of

TRACE, CALLER = "a" * 32, "b" * 16


@pytest.mark.parametrize("sampled", [True, False])
@pytest.mark.parametrize("taken", list(itertools.product([False, True], repeat=3)))
def test_a_frames_spans_hang_together_whoever_records(taken: tuple[bool, bool, bool], *, sampled: bool) -> None:
    taker = InMemorySpanExporter()
    gateway, head, tail = (
        Telemetry(name, processor=SimpleSpanProcessor(taker) if takes else None)
        for name, takes in zip(("gateway", "head", "tail"), taken, strict=True)
    )
    asked = f"00-{TRACE}-{CALLER}-{int(sampled):02x}"
    with (
        gateway.span(Span.GATEWAY_FRAME, traceparent=asked) as sent,
        head.span(Span.HEAD_FRAME, traceparent=traceparent_of(sent)) as frame,
    ):
        head.record(Span.HEAD_DECODE, 1, 2, parent=frame)
        with (
            head.span(Span.HEAD_ESCALATE, parent=frame) as crosses,
            tail.span(Span.TAIL_FRAME, trace_context=trace_context_of(crosses)) as end,
        ):
            assert end.get_span_context().trace_flags.sampled is sampled
    assert {trace_id_of(span) for span in (sent, frame, crosses, end)} == {TRACE}
    spans = taker.get_finished_spans()
    names = [Span.GATEWAY_FRAME] * taken[0]
    names += [Span.HEAD_FRAME, Span.HEAD_DECODE, Span.HEAD_ESCALATE] * taken[1]
    names += [Span.TAIL_FRAME] * taken[2]
    assert sorted(span.name for span in spans) == (sorted(names) if sampled else [])
    known = {span.context.span_id for span in spans} | {int(CALLER, 16)}
    assert all(span.parent is not None and span.parent.span_id in known for span in spans)


def test_a_frames_number_is_written_also_where_it_takes_all_64_bits(caplog: pytest.LogCaptureFixture) -> None:
    taker = InMemorySpanExporter()
    telemetry = Telemetry("head", processor=SimpleSpanProcessor(taker))
    with telemetry.span(Span.HEAD_FRAME, attributes={Attr.FRAME_ID: 2**64 - 1}):
        pass
    with caplog.at_level(logging.WARNING):
        sent = encode_spans(taker.get_finished_spans())
    (attribute,) = sent.resource_spans[0].scope_spans[0].spans[0].attributes
    assert attribute.value.string_value == str(2**64 - 1)
    assert not caplog.records
