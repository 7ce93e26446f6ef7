"""Asks the compressor to make a split small on the wire and to give it an exit, and follows it until it is done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from enum import StrEnum

import grpc

from splitmesh.api.compression.v1 import compression_pb2, compression_pb2_grpc
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import Channels, mesh_errors
from splitmesh.kernel.errors import from_status

SERVICE = "compressor"
START_DEADLINE_S = 30.0
BACKOFF_S = (0.1, 5.0)
"""First and largest wait before a broken watch is opened again."""
MAX_BROKEN_WATCHES = 10
"""In a row, without a state in between; then the compressor counts as gone."""


class CompressionState(StrEnum):
    """Where a compression stands."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class CompressionInfo:
    """A compression now."""

    compression_id: str
    state: CompressionState
    step: str
    progress: float
    """Share of the steps done, 0..1."""
    result_version: int
    """0 until it succeeded."""


@dataclass(frozen=True, slots=True)
class CompressionReport:
    """What a compression did, measured on calibration samples that the fit never saw."""

    version: int
    wire_bytes_before: float
    """Mean of one sample, float32 and zstd."""
    wire_bytes_after: float
    tail_agreement: float | None
    """Share of samples on which head + tail name the whole model's class; None without classes."""
    exit_agreement: float | None
    """Share of samples on which the exit names the whole model's class; None without an exit."""
    holdout_samples: int
    fit_samples: int
    head_size_bytes: int
    tail_size_bytes: int


class CompressionClient:
    """Calls CompressionService. Every method raises the service's MeshErrors, see its proto."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels

    async def compress(
        self,
        model: str,
        version: int,
        *,
        quantise_cut: bool,
        attach_exit: bool,
        on_state: Callable[[CompressionInfo], None] | None = None,
        timeout_s: float = 1800.0,
    ) -> tuple[int, CompressionReport]:
        """Compress a split version; the new version and the report. Repeating a finished call gives the same version.

        Args:
            model: by name.
            version: its number; split, with calibration samples.
            quantise_cut: round what crosses to 8 bits.
            attach_exit: fit an exit on the model's own answers.
            on_state: called with the state now and each change.
            timeout_s: DEADLINE_EXPIRED after this many seconds; the compression itself goes on.

        A compression that failed raises its own error.
        """
        # One channel for all calls: another instance of the compressor would not know the compression.
        stub = compression_pb2_grpc.CompressionServiceStub(await self._channels.to(SERVICE))
        recipe = compression_pb2.Recipe(quantise_cut=quantise_cut, attach_exit=attach_exit)
        request = compression_pb2.CompressModelRequest(model=model, version=version, recipe=recipe)
        try:
            async with asyncio.timeout(timeout_s), mesh_errors():
                started = await stub.CompressModel(request, timeout=START_DEADLINE_S)
                compression_id = started.compression.compression_id
                await _follow(stub, compression_id, on_state)
                report = await stub.GetReport(compression_pb2.GetReportRequest(compression_id=compression_id))
        except TimeoutError as error:
            raise MeshError(
                Reason.DEADLINE_EXPIRED, f"the compression did not end within {timeout_s:g} s; it goes on"
            ) from error
        return report.version, _report(report)


async def _follow(
    stub: compression_pb2_grpc.CompressionServiceStub,
    compression_id: str,
    on_state: Callable[[CompressionInfo], None] | None,
) -> None:
    """Until it succeeded; the compression's error when it failed."""
    broken = 0
    while True:
        try:
            async with aclosing(_states(stub, compression_id)) as states:
                async for compression in states:
                    broken = 0
                    if compression.state == compression_pb2.COMPRESSION_STATE_FAILED:
                        raise from_status(compression.error)
                    if on_state is not None:
                        on_state(_info(compression))
                    if compression.state == compression_pb2.COMPRESSION_STATE_SUCCEEDED:
                        return
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE or broken >= MAX_BROKEN_WATCHES:
                raise
        broken += 1
        await asyncio.sleep(min(BACKOFF_S[1], BACKOFF_S[0] * 2**broken))


async def _states(
    stub: compression_pb2_grpc.CompressionServiceStub, compression_id: str
) -> AsyncGenerator[compression_pb2.Compression]:
    call = stub.WatchCompression(compression_pb2.WatchCompressionRequest(compression_id=compression_id))
    try:
        async for response in call:
            yield response.compression
    finally:
        call.cancel()


def _info(message: compression_pb2.Compression) -> CompressionInfo:
    name = compression_pb2.CompressionState.Name(message.state).removeprefix("COMPRESSION_STATE_")
    return CompressionInfo(
        message.compression_id, CompressionState(name), message.step, message.progress, message.result_version
    )


def _report(message: compression_pb2.GetReportResponse) -> CompressionReport:
    return CompressionReport(
        version=message.version,
        wire_bytes_before=message.wire_bytes_before,
        wire_bytes_after=message.wire_bytes_after,
        tail_agreement=message.tail_agreement if message.HasField("tail_agreement") else None,
        exit_agreement=message.exit_agreement if message.HasField("exit_agreement") else None,
        holdout_samples=message.holdout_samples,
        fit_samples=message.fit_samples,
        head_size_bytes=message.head_size_bytes,
        tail_size_bytes=message.tail_size_bytes,
    )
