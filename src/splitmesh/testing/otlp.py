"""A receiver of traces, for tests and demonstrations: real OTLP/gRPC in, simple spans and a readable tree out.

Knows the OTLP trace service; does not know which spans splitmesh makes, and keeps only a bounded number of them.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

Value = str | bool | int | float | bytes | tuple["Value", ...] | None
Status = Literal["unset", "ok", "error"]

_MAX_MESSAGE_BYTES = 16 << 20
_MAX_NESTING = 8
_STATUS: tuple[Status, ...] = ("unset", "ok", "error")


@dataclass(frozen=True, slots=True)
class ReceivedLink:
    """A span's pointer to another one, both ids in hexadecimal."""

    trace_id: str
    span_id: str


@dataclass(frozen=True, slots=True)
class ReceivedSpan:
    """One span as it came in; ids in hexadecimal, times in nanoseconds since 1970."""

    name: str
    service: str
    """The resource's ``service.name``; empty when it has none."""
    trace_id: str
    span_id: str
    parent_id: str
    """Empty for the first span of a trace."""
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Value]
    links: tuple[ReceivedLink, ...]
    status: Status
    status_message: str

    @property
    def duration_ms(self) -> float:
        """How long it took."""
        return (self.end_ns - self.start_ns) / 1e6


class TraceReceiver:
    """``async with TraceReceiver() as receiver:`` then point an OTLP/gRPC exporter at ``receiver.endpoint``.

    An exporter that is flushed on the receiver's own event loop waits for itself: flush in a thread.

    Args:
        listen: ``host:port`` to answer at; port 0 picks a free one.
        max_spans: how many are kept; beyond, the oldest go and ``dropped`` counts them.
    """

    def __init__(self, *, listen: str = "127.0.0.1:0", max_spans: int = 20_000) -> None:
        self._listen = listen
        self._spans: deque[ReceivedSpan] = deque(maxlen=max_spans)
        self._arrived = asyncio.Event()
        self._server: grpc.aio.Server | None = None
        self.dropped = 0
        """Spans that had to make room for later ones."""
        self.endpoint = ""
        """``http://host:port`` once started."""

    async def __aenter__(self) -> Self:
        server = grpc.aio.server(
            options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES)]
        )
        add_servicer = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
        add_servicer(_Servicer(self._keep), server)  # type: ignore[no-untyped-call]
        port = server.add_insecure_port(self._listen)
        await server.start()
        self._server = server
        self.endpoint = f"http://{self._listen.rpartition(':')[0]}:{port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            await self._server.stop(None)

    def spans(self) -> list[ReceivedSpan]:
        """What is kept, in order of arrival."""
        return list(self._spans)

    def traces(self) -> dict[str, list[ReceivedSpan]]:
        """The spans of each trace by start, traces by their first span's start."""
        grouped: dict[str, list[ReceivedSpan]] = defaultdict(list)
        for span in sorted(self._spans, key=_by_start):
            grouped[span.trace_id].append(span)
        return dict(grouped)

    async def wait_for(
        self, predicate: Callable[[list[ReceivedSpan]], bool], timeout_s: float = 10.0
    ) -> list[ReceivedSpan]:
        """The spans as soon as they satisfy ``predicate``, which is asked again after each arrival.

        Raises:
            TimeoutError: they did not within ``timeout_s`` seconds; names what did arrive.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    arrived, spans = self._arrived, self.spans()
                    if predicate(spans):
                        return spans
                    await arrived.wait()
        except TimeoutError:
            names = sorted({span.name for span in self._spans})
            raise TimeoutError(f"not within {timeout_s} s; {len(self._spans)} spans came: {names[:20]}") from None

    def _keep(self, spans: Iterable[ReceivedSpan]) -> None:
        for span in spans:
            self.dropped += len(self._spans) == self._spans.maxlen
            self._spans.append(span)
        self._arrived.set()
        self._arrived = asyncio.Event()


def render_tree(spans: Sequence[ReceivedSpan]) -> str:
    """One trace as plain text, the same for the same spans: when each began, how long it took, who did what.

        trace 5b8efff798038103d269b633813fc60c: 3 spans, 41.80 ms
            +0.00 ms    41.80 ms  gateway: frame
            +1.10 ms     6.30 ms    head: run
            +8.00 ms    31.00 ms    tail: run [error: QUEUE_FULL]

    A span whose parent did not arrive stands at the left, marked ``(parent missing)``.

    Raises:
        ValueError: no span, or spans of more than one trace.
    """
    trace_ids = {span.trace_id for span in spans}
    if len(trace_ids) != 1:
        raise ValueError(f"a tree shows exactly one trace, these are {len(trace_ids)}")
    ordered = sorted(spans, key=_by_start)
    known = {span.span_id for span in ordered}
    children: dict[str, list[ReceivedSpan]] = defaultdict(list)
    for span in ordered:
        children[span.parent_id if span.parent_id in known else ""].append(span)
    begin, end = min(span.start_ns for span in ordered), max(span.end_ns for span in ordered)
    lines = [f"trace {trace_ids.pop()}: {len(ordered)} spans, {(end - begin) / 1e6:.2f} ms"]
    shown: set[int] = set()
    # Spans that are each other's ancestors have no root to be reached from: each left over starts a tree of its own.
    for root in (*children[""], *ordered):
        waiting = [(root, 0)]
        while waiting:
            span, depth = waiting.pop()
            if id(span) in shown:
                continue
            shown.add(id(span))
            lines.append(_line(span, depth, begin, orphan=depth == 0 and bool(span.parent_id)))
            waiting += [(child, depth + 1) for child in reversed(children[span.span_id])] if span.span_id else []
    return "\n".join(lines)


def _line(span: ReceivedSpan, depth: int, begin_ns: int, *, orphan: bool) -> str:
    notes = " (parent missing)" if orphan else ""
    if span.status == "error":
        notes += f" [error: {_printable(span.status_message)}]" if span.status_message else " [error]"
    offset, took = f"+{(span.start_ns - begin_ns) / 1e6:.2f} ms", f"{span.duration_ms:.2f} ms"
    what = f"{_printable(span.service) or '?'}: {_printable(span.name)}"
    return f"{offset:>14}  {took:>12}  {'  ' * depth}{what}{notes}"


def _printable(text: str) -> str:
    """Names are the sender's word: nothing in them may move a terminal's cursor or fake a line."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _by_start(span: ReceivedSpan) -> tuple[int, str, str]:
    return span.start_ns, span.name, span.span_id


class _Servicer(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self, keep: Callable[[Iterable[ReceivedSpan]], None]) -> None:
        self._keep = keep

    async def Export(  # noqa: N802  the RPC's name
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: object
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        for group in request.resource_spans:
            service = str(_attributes(group.resource.attributes).get("service.name", ""))
            self._keep(_received(span, service) for scope in group.scope_spans for span in scope.spans)
        return trace_service_pb2.ExportTraceServiceResponse()


def _received(span: trace_pb2.Span, service: str) -> ReceivedSpan:
    code = span.status.code
    return ReceivedSpan(
        name=span.name,
        service=service,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        attributes=_attributes(span.attributes),
        links=tuple(ReceivedLink(link.trace_id.hex(), link.span_id.hex()) for link in span.links),
        status=_STATUS[code] if 0 <= code < len(_STATUS) else "unset",
        status_message=span.status.message,
    )


def _attributes(pairs: Iterable[common_pb2.KeyValue]) -> dict[str, Value]:
    return {pair.key: _value(pair.value, 0) for pair in pairs}


def _value(value: common_pb2.AnyValue, depth: int) -> Value:
    match value.WhichOneof("value"):
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "int_value":
            return value.int_value
        case "double_value":
            return value.double_value
        case "bytes_value":
            return value.bytes_value
        case "array_value" if depth < _MAX_NESTING:
            return tuple(_value(each, depth + 1) for each in value.array_value.values)
        case _:  # maps, which the tracing API cannot set, and nothing
            return None
