"""The table of spans and attributes is complete, and telemetry writes what it is told, reasons only for failures."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.signals import ATTRIBUTES, PARENTS, Attr, Span
from splitmesh.kernel.telemetry import Telemetry, trace_context_of, trace_id_of, traceparent_of


@pytest.fixture
def spans() -> Iterator[tuple[Telemetry, InMemorySpanExporter]]:
    exporter = InMemorySpanExporter()
    telemetry = Telemetry("test", processor=SimpleSpanProcessor(exporter))
    yield telemetry, exporter
    telemetry.shutdown()


def test_every_span_has_its_parents_and_attributes_declared() -> None:
    assert set(PARENTS) == set(ATTRIBUTES) == set(Span)
    assert {attribute for attributes in ATTRIBUTES.values() for attribute in attributes} == set(Attr)
    assert {parent for parents in PARENTS.values() for parent in parents} <= set(Span)


def test_every_span_descends_from_one_that_starts_a_trace() -> None:
    reached = {span for span, parents in PARENTS.items() if not parents}
    while grown := {span for span, parents in PARENTS.items() if parents & reached} - reached:
        reached |= grown
    assert reached == set(Span)


def test_no_attribute_is_named_after_content() -> None:
    for attribute in Attr:
        assert not any(word in attribute.value for word in ("image", "picture", "tensor", "path", "file", "token"))


def test_a_span_below_a_traceparent_continues_that_trace(spans: tuple[Telemetry, InMemorySpanExporter]) -> None:
    telemetry, exporter = spans
    with telemetry.span(Span.GATEWAY_FRAME) as outer:
        header = traceparent_of(outer)
    with telemetry.span(Span.HEAD_FRAME, traceparent=header, attributes={Attr.FRAME_ID: 7}) as inner:
        assert trace_id_of(inner) == trace_id_of(outer)
    (first, second) = exporter.get_finished_spans()
    assert second.parent is not None
    assert second.parent.span_id == first.context.span_id
    assert dict(second.attributes or {}) == {"splitmesh.frame.id": 7}


@pytest.mark.parametrize("header", ["", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "00-zz-zz-00"])
def test_a_traceparent_that_is_none_starts_a_new_trace(
    spans: tuple[Telemetry, InMemorySpanExporter], header: str
) -> None:
    telemetry, exporter = spans
    with telemetry.span(Span.HEAD_FRAME, traceparent=header):
        pass
    (span,) = exporter.get_finished_spans()
    assert span.parent is None


@pytest.mark.parametrize(
    ("error", "reason"),
    [(MeshError(Reason.QUEUE_FULL, "secret"), "QUEUE_FULL"), (ValueError("secret"), "ValueError")],
)
def test_a_failed_span_says_why_and_nothing_more(
    spans: tuple[Telemetry, InMemorySpanExporter], error: Exception, reason: str
) -> None:
    telemetry, exporter = spans
    with pytest.raises(type(error)), telemetry.span(Span.TAIL_FRAME):
        raise error
    (span,) = exporter.get_finished_spans()
    assert dict(span.attributes or {}) == {"error.type": reason}
    assert "secret" not in span.to_json()


def test_a_recorded_span_keeps_the_times_it_was_given(spans: tuple[Telemetry, InMemorySpanExporter]) -> None:
    telemetry, exporter = spans
    with telemetry.span(Span.TAIL_FRAME) as parent:
        telemetry.record(Span.TAIL_QUEUE, 1000, 3000, parent=parent)
    recorded = exporter.get_finished_spans()[0]
    assert (recorded.name, recorded.start_time, recorded.end_time) == ("tail.queue", 1000, 3000)


def test_where_nobody_takes_spans_a_frame_still_has_a_trace_id() -> None:
    telemetry = Telemetry("test")
    with telemetry.span(Span.GATEWAY_FRAME) as first, telemetry.span(Span.GATEWAY_FRAME) as second:
        assert not first.is_recording()
        assert int(trace_id_of(first), 16) > 0
        assert trace_id_of(first) != trace_id_of(second)
        assert traceparent_of(first).startswith(f"00-{trace_id_of(first)}-")
    telemetry.shutdown()


def test_where_nobody_takes_spans_the_outside_parent_is_passed_on_unchanged(
    spans: tuple[Telemetry, InMemorySpanExporter],
) -> None:
    recording, exporter = spans
    between = Telemetry("between")
    with recording.span(Span.GATEWAY_FRAME) as gateway:
        header, context = traceparent_of(gateway), trace_context_of(gateway)
    for outside in ({"traceparent": header}, {"trace_context": context}):
        with between.span(Span.HEAD_FRAME, **outside) as head:
            between.record(Span.HEAD_DECODE, 1, 2, parent=head)
            with between.span(Span.HEAD_ESCALATE, parent=head) as escalate:
                assert (traceparent_of(escalate), trace_context_of(escalate)) == (header, context)
    with recording.span(Span.TAIL_FRAME, trace_context=context):
        pass
    first, last = exporter.get_finished_spans()
    assert last.parent is not None
    assert last.parent.span_id == first.context.span_id


def test_a_failure_where_nobody_takes_spans_is_still_raised() -> None:
    with pytest.raises(MeshError, match="full"), Telemetry("test").span(Span.TAIL_FRAME):
        raise MeshError(Reason.QUEUE_FULL, "full")
