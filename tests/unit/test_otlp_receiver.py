"""The trace receiver, fed by OpenTelemetry's own OTLP exporter; and the tree it draws."""

from __future__ import annotations

import asyncio
import dataclasses
import logging

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, Status, StatusCode

from splitmesh.testing.otlp import ReceivedLink, ReceivedSpan, TraceReceiver, render_tree


class Sender:
    """A service that makes spans and sends them."""

    def __init__(self, receiver: TraceReceiver, service: str) -> None:
        exporter = OTLPSpanExporter(endpoint=receiver.endpoint, insecure=True, timeout=10)
        self.provider = TracerProvider(resource=Resource({"service.name": service}), shutdown_on_exit=False)
        self.provider.add_span_processor(BatchSpanProcessor(exporter))
        self.tracer = self.provider.get_tracer("test")

    async def send(self) -> None:
        # In a thread: the receiver answers on this loop.
        await asyncio.to_thread(self.provider.shutdown)


def span(name: str, span_id: str = "a", parent_id: str = "", **more: object) -> ReceivedSpan:
    plain = ReceivedSpan(name, "head", "7f", span_id, parent_id, 1_000_000, 2_000_000, {}, (), "unset", "")
    return dataclasses.replace(plain, **more)  # type: ignore[arg-type]


async def test_a_real_exporters_spans_arrive_whole() -> None:
    async with TraceReceiver() as receiver:
        sender = Sender(receiver, "head")
        with sender.tracer.start_as_current_span("frame", attributes={"bytes": 7, "cut": "c3", "ok": True}) as outer:
            other = Link(trace.get_current_span().get_span_context())
            with sender.tracer.start_as_current_span("run", links=[other]) as inner:
                inner.set_status(Status(StatusCode.ERROR, "too late"))
                inner.set_attribute("shape", [1, 32])
        await sender.send()
        spans = {each.name: each for each in await receiver.wait_for(lambda found: len(found) == 2)}
    frame, run = spans["frame"], spans["run"]
    assert frame.service == run.service == "head"
    assert frame.trace_id == run.trace_id == f"{outer.get_span_context().trace_id:032x}"
    assert (frame.parent_id, run.parent_id) == ("", frame.span_id)
    assert frame.attributes == {"bytes": 7, "cut": "c3", "ok": True}
    assert run.attributes == {"shape": (1, 32)}
    assert run.links == (ReceivedLink(frame.trace_id, frame.span_id),)
    assert (frame.status, run.status, run.status_message) == ("unset", "error", "too late")
    assert frame.start_ns <= run.start_ns <= run.end_ns <= frame.end_ns
    assert run.duration_ms == (run.end_ns - run.start_ns) / 1e6


async def test_a_trace_across_two_services_is_one_group() -> None:
    async with TraceReceiver() as receiver:
        head, tail = Sender(receiver, "head"), Sender(receiver, "tail")
        with head.tracer.start_as_current_span("frame"), tail.tracer.start_as_current_span("run"):
            pass
        head.tracer.start_span("alone").end()
        await asyncio.gather(head.send(), tail.send())
        await receiver.wait_for(lambda found: len(found) == 3)
        groups = [[(each.service, each.name) for each in spans] for spans in receiver.traces().values()]
    assert groups == [[("head", "frame"), ("tail", "run")], [("head", "alone")]]


async def test_waiting_ends_with_the_span_that_was_waited_for() -> None:
    async with TraceReceiver() as receiver:
        waiting = asyncio.create_task(receiver.wait_for(lambda found: any(each.name == "second" for each in found)))
        for name in ("first", "second"):
            sender = Sender(receiver, "head")
            sender.tracer.start_span(name).end()
            await sender.send()
        assert [each.name for each in await waiting] == ["first", "second"]


async def test_waiting_in_vain_says_what_came_instead() -> None:
    async with TraceReceiver() as receiver:
        sender = Sender(receiver, "head")
        sender.tracer.start_span("something").end()
        await sender.send()
        with pytest.raises(TimeoutError, match=r"1 spans came: \['something'\]"):
            await receiver.wait_for(lambda found: False, timeout_s=0.05)


async def test_beyond_its_bound_the_oldest_spans_go_and_are_counted() -> None:
    async with TraceReceiver(max_spans=3) as receiver:
        sender = Sender(receiver, "head")
        for number in range(5):
            sender.tracer.start_span(str(number)).end()
        await sender.send()
        await receiver.wait_for(lambda found: bool(found) and found[-1].name == "4")
        assert [each.name for each in receiver.spans()] == ["2", "3", "4"]
        assert receiver.dropped == 2


async def test_two_receivers_never_share_a_port(caplog: pytest.LogCaptureFixture) -> None:
    async with TraceReceiver() as first:
        address = first.endpoint.removeprefix("http://")
        with caplog.at_level(logging.CRITICAL), pytest.raises(RuntimeError, match="bind"):
            await TraceReceiver(listen=address).__aenter__()


def test_a_tree_shows_who_did_what_when_and_for_how_long() -> None:
    tree = render_tree(
        [
            span("run", "c", "a", service="tail", start_ns=9_000_000, end_ns=40_000_000),
            span("infer", "b", "a", start_ns=2_100_000, end_ns=8_400_000),
            span("frame", "a", "", service="gateway", start_ns=1_000_000, end_ns=42_800_000),
            span("decode", "d", "c", service="tail", start_ns=9_000_000, end_ns=9_250_000, status="error"),
        ]
    )
    assert tree.splitlines() == [
        "trace 7f: 4 spans, 41.80 ms",
        "      +0.00 ms      41.80 ms  gateway: frame",
        "      +1.10 ms       6.30 ms    head: infer",
        "      +8.00 ms      31.00 ms    tail: run",
        "      +8.00 ms       0.25 ms      tail: decode [error]",
    ]


def test_a_tree_does_not_depend_on_the_order_of_arrival() -> None:
    spans = [span("a"), *(span("same", each, "a") for each in "bcd")]
    assert render_tree(spans) == render_tree(spans[::-1])


def test_a_span_without_its_parent_is_shown_and_marked() -> None:
    tree = render_tree([span("run", parent_id="lost", status="error", status_message="QUEUE_FULL")])
    assert tree.endswith("head: run (parent missing) [error: QUEUE_FULL]")


def test_every_span_is_shown_once_even_when_spans_are_each_others_parents() -> None:
    spans = [span("one", "a", "b"), span("two", "b", "a"), span("self", "c", "c"), span("twice", "c", "c")]
    lines = render_tree(spans).splitlines()[1:]
    assert sorted(line.split("head: ")[1].split(" ")[0] for line in lines) == ["one", "self", "twice", "two"]


def test_a_very_deep_trace_is_no_problem() -> None:
    chain = [span("s", f"{number}", f"{number - 1}" if number else "") for number in range(3000)]
    assert len(render_tree(chain).splitlines()) == 3001


def test_a_name_cannot_fake_lines_or_steer_a_terminal() -> None:
    assert render_tree([span("x\n\x1b[2Jy")]).splitlines()[1].endswith("head: x??[2Jy")


@pytest.mark.parametrize("spans", [[], [span("a"), span("b", trace_id="80")]])
def test_a_tree_is_of_exactly_one_trace(spans: list[ReceivedSpan]) -> None:
    with pytest.raises(ValueError, match="exactly one trace"):
        render_tree(spans)
