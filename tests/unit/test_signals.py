"""The table of spans and attributes is complete, and telemetry writes what it is told, reasons only for failures."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.signals import ATTRIBUTES, PARENTS, Attr, Span
from splitmesh.kernel.telemetry import Telemetry, trace_id_of, traceparent_of


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
