"""Traces: spans from the declared table, carried from service to service as W3C traceparent per frame.

One :class:`Telemetry` per service, injected; nothing global. Spans leave by OTLP/gRPC in the background with a bounded
queue; a missing receiver costs dropped spans, never a frame. Where nobody takes spans none is made: a frame keeps its trace
id, and what it was given as its parent travels on unchanged, as W3C Trace Context asks of those who only pass it through.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import TracebackType

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import NonRecordingSpan, SpanContext, Status, StatusCode, TraceFlags
from opentelemetry.trace import Span as OtelSpan
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from splitmesh.errors import MeshError
from splitmesh.kernel.signals import Attr, Span

_PROPAGATOR = TraceContextTextMapPropagator()
_IDS = RandomIdGenerator()
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
EXPORT_TIMEOUT_S = 5.0
TRACE_CONTEXT_BYTES = 25
MAX_INT = (1 << 63) - 1

AttrValue = str | int | float | bool


class Telemetry:
    """Makes spans for one service."""

    def __init__(
        self, service: str, *, node: str = "", otlp_endpoint: str = "", processor: SpanProcessor | None = None
    ):
        self._provider: TracerProvider | None = None
        self._tracer: trace.Tracer | None = None
        if not otlp_endpoint and processor is None:
            return
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
        at the root of a new trace.

        Where nobody takes spans it is ``parent`` itself, a stand-in for the outside one, or the bare ids of a new trace.
        """
        if self._tracer is None:
            return parent or _from_outside(traceparent, trace_context) or _new_trace()
        above = parent or _from_outside(traceparent, trace_context)
        context = Context() if above is None else trace.set_span_in_context(above, Context())
        return self._tracer.start_span(name, context=context, attributes=_plain(attributes), start_time=start_ns)

    def span(
        self,
        name: Span,
        *,
        parent: OtelSpan | None = None,
        traceparent: str = "",
        trace_context: bytes = b"",
        attributes: Mapping[Attr, AttrValue] | None = None,
    ) -> AbstractContextManager[OtelSpan]:
        """A span around a block, open from now on; an exception marks it as failed with its reason."""
        return _Ending(
            self.start(name, parent=parent, traceparent=traceparent, trace_context=trace_context, attributes=attributes)
        )

    def use(self, span: OtelSpan) -> AbstractContextManager[OtelSpan]:
        """Ends an open span after a block; an exception marks it as failed with its reason."""
        return _Ending(span)

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
        if self._tracer is not None and parent.is_recording():
            self.start(name, parent=parent, attributes=attributes, start_ns=start_ns).end(end_time=end_ns)

    def shutdown(self) -> None:
        """Export what is left, within the export time-out."""
        if self._provider is not None:
            self._provider.shutdown()


class _Ending:
    """Ends a span after a block."""

    __slots__ = ("_span",)

    def __init__(self, span: OtelSpan) -> None:
        self._span = span

    def __enter__(self) -> OtelSpan:
        return self._span

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        if error is not None:
            fail(self._span, error)
        self._span.end()


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


def _new_trace() -> OtelSpan:
    """Ids alone, marked as sampled: whoever records further on does."""
    context = SpanContext(
        trace_id=_IDS.generate_trace_id(), span_id=_IDS.generate_span_id(), is_remote=False, trace_flags=_SAMPLED
    )
    return NonRecordingSpan(context)


def _from_outside(traceparent: str, trace_context: bytes) -> OtelSpan | None:
    """What a caller names as the parent; None where that is nothing, or no W3C trace context."""
    if len(trace_context) == TRACE_CONTEXT_BYTES:
        return _remote_parent(trace_context)
    if traceparent:
        span = trace.get_current_span(_PROPAGATOR.extract({"traceparent": traceparent}, Context()))
        return span if span.get_span_context().is_valid else None
    return None


def _remote_parent(trace_context: bytes) -> OtelSpan | None:
    parent = SpanContext(
        trace_id=int.from_bytes(trace_context[:16], "big"),
        span_id=int.from_bytes(trace_context[16:24], "big"),
        is_remote=True,
        trace_flags=TraceFlags(trace_context[24]),
    )
    return NonRecordingSpan(parent) if parent.is_valid else None


def trace_id_of(span: OtelSpan) -> str:
    """32 hexadecimal digits."""
    return trace.format_trace_id(span.get_span_context().trace_id)


def _plain(attributes: Mapping[Attr, AttrValue] | None) -> dict[str, AttrValue]:
    return {key.value: _fitting(value) for key, value in (attributes or {}).items()}


def _fitting(value: AttrValue) -> AttrValue:
    """A frame's number may take 64 bits; OTLP's have a sign."""
    return str(value) if isinstance(value, int) and value > MAX_INT else value


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
