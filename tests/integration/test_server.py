"""What every server does around its methods: limits, reflection, errors and deadlines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from splitmesh.api.segment.v1 import segment_pb2, segment_pb2_grpc
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.kernel.channels import mesh_errors, open_channel
from splitmesh.kernel.config import ServiceSettings
from splitmesh.kernel.lifecycle import Host
from splitmesh.kernel.signals import Span
from splitmesh.kernel.telemetry import Telemetry
from tests.support.small_service import SERVICE, SmallService
from tests.support.wire import Raw, ended

WAIT_S = 20.0
SECRET = "/home/operator/model.onnx"


def settings(**changes: object) -> ServiceSettings:
    return ServiceSettings(**{"drain_s": 1.0, "node": "here", **changes})  # type: ignore[arg-type]


async def described(
    host: Host, *, metadata: tuple[tuple[str, str], ...] = (), timeout: float | None = WAIT_S
) -> segment_pb2.DescribeResponse:
    # A bare channel: ours would add a deadline.
    async with grpc.aio.insecure_channel(host.address) as channel, mesh_errors():
        stub = segment_pb2_grpc.SegmentServiceStub(channel)
        return await stub.Describe(segment_pb2.DescribeRequest(), timeout=timeout, metadata=metadata)


async def refused(host: Host, **options: Any) -> MeshError:
    with pytest.raises(MeshError) as caught:
        await described(host, **options)
    return caught.value


async def reflected(host: Host) -> set[str]:
    async with grpc.aio.insecure_channel(host.address) as channel, mesh_errors():
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="*")
        async for response in stub.ServerReflectionInfo(iter([request]), timeout=WAIT_S):
            return {service.name for service in response.list_services_response.service}
    return set()


async def test_reflection_lists_the_services_only_where_it_is_switched_on() -> None:
    async with Host("small", settings(reflection=True), SmallService()) as host:
        assert await reflected(host) >= {SERVICE, "grpc.health.v1.Health"}
    async with (
        Host("small", settings(), SmallService()) as host,
        grpc.aio.insecure_channel(host.address) as channel,
    ):
        # Nothing is written: gRPC may report a write to a call that is refused already as an error of its own.
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(timeout=WAIT_S)
        assert await call.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_an_error_of_the_catalogue_arrives_whole() -> None:
    async def refuse(context: Any) -> segment_pb2.DescribeResponse:
        raise field_error("port", "is odd")

    async with Host("small", settings(), SmallService(describe=refuse)) as host:
        error = await refused(host)
    assert (error.reason, error.fields) == (Reason.FIELD_INVALID, (("port", "is odd"),))


async def test_an_unexpected_exception_is_internal_and_its_text_stays_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def crash(context: Any) -> segment_pb2.DescribeResponse:
        raise FileNotFoundError(SECRET)

    async def crash_in_stream(
        requests: AsyncIterator[segment_pb2.RunRequest],
    ) -> AsyncIterator[segment_pb2.RunResponse]:
        async for _ in requests:
            yield segment_pb2.RunResponse()
            raise FileNotFoundError(SECRET)

    async with Host("small", settings(), SmallService(describe=crash, run=crash_in_stream)) as host:
        unary = await refused(host)
        async with open_channel(host.address) as channel:
            raw = Raw(segment_pb2_grpc.SegmentServiceStub(channel).Run())
            await raw.write(segment_pb2.RunRequest())
            streamed = await ended(raw)
    for error in (unary, streamed):
        assert error.reason is Reason.INTERNAL
        assert SECRET not in str(error)
        assert "FileNotFound" not in str(error)
    assert caplog.text.count(f"FileNotFoundError: {SECRET}") == 2


async def test_a_call_without_a_deadline_gets_the_servers() -> None:
    async def never(context: Any) -> segment_pb2.DescribeResponse:
        await asyncio.Event().wait()
        raise AssertionError

    async with Host("small", settings(default_deadline_s=0.1), SmallService(describe=never)) as host:
        async with asyncio.timeout(WAIT_S):
            error = await refused(host, timeout=None)
        assert error.reason is Reason.DEADLINE_EXPIRED
        assert "0.1 s" in error.message


async def test_a_time_out_inside_a_method_is_not_taken_for_the_calls_deadline() -> None:
    async def times_out(context: Any) -> segment_pb2.DescribeResponse:
        raise TimeoutError(SECRET)

    async with Host("small", settings(), SmallService(describe=times_out)) as host:
        error = await refused(host, timeout=None)
    assert error.reason is Reason.INTERNAL


async def test_the_callers_own_deadline_counts_before_the_servers() -> None:
    remaining: list[float] = []

    async def look(context: Any) -> segment_pb2.DescribeResponse:
        remaining.append(context.time_remaining())
        return segment_pb2.DescribeResponse()

    async with Host("small", settings(default_deadline_s=0.001), SmallService(describe=look)) as host:
        await described(host, timeout=5.0)
    assert 1 < remaining[0] < 6.0


async def test_our_channels_give_every_call_a_deadline() -> None:
    remaining: list[float | None] = []

    async def look(context: Any) -> segment_pb2.DescribeResponse:
        remaining.append(context.time_remaining())
        return segment_pb2.DescribeResponse()

    async with Host("small", settings(), SmallService(describe=look)) as host, open_channel(host.address) as channel:
        await segment_pb2_grpc.SegmentServiceStub(channel).Describe(segment_pb2.DescribeRequest())
    assert remaining[0] is not None
    assert 0 < remaining[0] < 11.0


async def test_metadata_above_the_limit_is_refused_and_the_next_call_answered() -> None:
    async with Host("small", settings(), SmallService()) as host:
        error = await refused(host, metadata=(("big", "x" * 40_000),))
        assert error.reason in (Reason.QUEUE_FULL, Reason.SERVICE_UNAVAILABLE, Reason.INTERNAL)
        assert (await described(host)).node == "small"


async def test_calls_above_the_servers_limit_are_refused() -> None:
    running, go_on = asyncio.Event(), asyncio.Event()

    async def wait(context: Any) -> segment_pb2.DescribeResponse:
        running.set()
        await go_on.wait()
        return segment_pb2.DescribeResponse(node="first")

    async with Host("small", settings(max_concurrent_rpcs=1), SmallService(describe=wait)) as host:
        first = asyncio.create_task(described(host))
        async with asyncio.timeout(WAIT_S):
            await running.wait()
        assert (await refused(host)).reason is Reason.QUEUE_FULL
        go_on.set()
        assert (await first).node == "first"


async def test_thousands_of_calls_that_come_at_once_are_all_answered() -> None:
    async with Host("small", settings(max_concurrent_rpcs=4000), SmallService()) as host:
        channels = [open_channel(host.address) for _ in range(16)]
        stubs = [segment_pb2_grpc.SegmentServiceStub(channel) for channel in channels]
        request = segment_pb2.DescribeRequest()
        calls = [stubs[number % 16].Describe(request, timeout=WAIT_S) for number in range(3500)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        await asyncio.gather(*(channel.close() for channel in channels))
    assert [one for one in answers if isinstance(one, BaseException)] == []


async def test_a_call_continues_the_callers_trace_and_marks_its_failure() -> None:
    spans = InMemorySpanExporter()
    telemetry = Telemetry("small", processor=SimpleSpanProcessor(spans))

    async def refuse(context: Any) -> segment_pb2.DescribeResponse:
        raise MeshError(Reason.STORAGE_FULL, "no room")

    async with Host("small", settings(), SmallService(describe=refuse), telemetry=telemetry) as host:
        traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        await refused(host, metadata=(("traceparent", traceparent),))
    telemetry.shutdown()
    (span,) = spans.get_finished_spans()
    assert span.name == Span.RPC_SERVER
    assert f"{span.context.trace_id:032x}" in traceparent
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" in traceparent
    assert dict(span.attributes or {}) == {"rpc.method": f"{SERVICE}/Describe", "error.type": "STORAGE_FULL"}
