"""Traces: spans from the declared table, carried from service to service as W3C traceparent per frame.

One :class:`Telemetry` per service, injected; nothing global. Spans leave by OTLP/gRPC in the background with a bounded
queue; a missing receiver costs dropped spans, never a frame.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import NonRecordingSpan, SpanContext, Status, StatusCode, TraceFlags
from opentelemetry.trace import Span as OtelSpan
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from splitmesh.errors import MeshError
from splitmesh.kernel.signals import Attr, Span

_PROPAGATOR = TraceContextTextMapPropagator()
EXPORT_TIMEOUT_S = 5.0
TRACE_CONTEXT_BYTES = 25

AttrValue = str | int | float | bool


class Telemetry:
    """Makes spans for one service."""

    def __init__(
        self, service: str, *, node: str = "", otlp_endpoint: str = "", processor: SpanProcessor | None = None
    ):
        resource = Resource.create({SERVICE_NAME: f"splitmesh-{service}", SERVICE_INSTANCE_ID: node or service})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        if otlp_endpoint:
            exporter = OTLPSpanExporter(endpoint=otlp_endpoint, insecure=True, timeout=EXPORT_TIMEOUT_S)
            self._provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=500))
        if processor is not None:
            self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("splitmesh")

    def start(
        self,
        name: Span,
        *,
        parent: OtelSpan | None = None,
        traceparent: str = "",
        trace_context: bytes = b"",
        attributes: Mapping[Attr, AttrValue] | None = None,
        start_ns: int | None = None,
    ) -> OtelSpan:
        """An open span below ``parent``, or below the outside ``traceparent`` or ``trace_context`` (the same as 25 bytes), or
        at the root of a new trace."""
        if parent is not None:
            context = trace.set_span_in_context(parent)
        elif trace_context:
            context = _remote_parent(trace_context)
        else:
            context = _PROPAGATOR.extract({"traceparent": traceparent}) if traceparent else Context()
        return self._tracer.start_span(name, context=context, attributes=_plain(attributes), start_time=start_ns)

    @contextmanager
    def span(
        self,
        name: Span,
        *,
        parent: OtelSpan | None = None,
        traceparent: str = "",
        trace_context: bytes = b"",
        attributes: Mapping[Attr, AttrValue] | None = None,
    ) -> Iterator[OtelSpan]:
        """A span around a block; an exception marks it as failed with its reason."""
        opened = self.start(
            name, parent=parent, traceparent=traceparent, trace_context=trace_context, attributes=attributes
        )
        with self.use(opened):
            yield opened

    @contextmanager
    def use(self, span: OtelSpan) -> Iterator[OtelSpan]:
        """Ends an open span after a block; an exception marks it as failed with its reason."""
        try:
            yield span
        except BaseException as error:
            fail(span, error)
            raise
        finally:
            span.end()

    def record(
        self,
        name: Span,
        start_ns: int,
        end_ns: int,
        *,
        parent: OtelSpan,
        attributes: Mapping[Attr, AttrValue] | None = None,
    ) -> None:
        """A span whose times are already known (nanoseconds since the epoch)."""
        self.start(name, parent=parent, attributes=attributes, start_ns=start_ns).end(end_time=end_ns)

    def shutdown(self) -> None:
        """Export what is left, within the export time-out."""
        self._provider.shutdown()


def fail(span: OtelSpan, error: BaseException) -> None:
    """Mark a span as failed; the reason code is the only detail that is written."""
    reason = error.reason.value if isinstance(error, MeshError) else type(error).__name__
    span.set_attribute(Attr.ERROR_TYPE, reason)
    span.set_status(Status(StatusCode.ERROR, reason))


def traceparent_of(span: OtelSpan) -> str:
    """The span as a W3C traceparent header."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, context=trace.set_span_in_context(span))
    return carrier.get("traceparent", "")


def trace_context_of(span: OtelSpan) -> bytes:
    """The span as a W3C trace context of 25 bytes: trace id, span id, flags."""
    context = span.get_span_context()
    return context.trace_id.to_bytes(16, "big") + context.span_id.to_bytes(8, "big") + bytes([context.trace_flags])


def _remote_parent(trace_context: bytes) -> Context:
    """What the bytes name; a new trace where they name nothing, as with a text that is no traceparent."""
    if len(trace_context) != TRACE_CONTEXT_BYTES:
        return Context()
    parent = SpanContext(
        trace_id=int.from_bytes(trace_context[:16], "big"),
        span_id=int.from_bytes(trace_context[16:24], "big"),
        is_remote=True,
        trace_flags=TraceFlags(trace_context[24]),
    )
    return trace.set_span_in_context(NonRecordingSpan(parent), Context()) if parent.is_valid else Context()


def trace_id_of(span: OtelSpan) -> str:
    """32 hexadecimal digits."""
    return trace.format_trace_id(span.get_span_context().trace_id)


def _plain(attributes: Mapping[Attr, AttrValue] | None) -> dict[str, AttrValue]:
    return {key.value: value for key, value in (attributes or {}).items()}


class _JsonLines(logging.Formatter):
    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure_logging(service: str, level: str) -> None:
    """JSON lines on standard error for this process."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines(service))
    logging.basicConfig(level=level, handlers=[handler], force=True)
