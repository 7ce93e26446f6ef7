"""Asks the compressor to make a version small, small on the wire and sure of itself at the edge, and follows it.

A recipe is written as on the command line (``["int8-cut", "exits"]``) or as values of :mod:`splitmesh.compress.recipe`;
what is wrong with it is said before anything is sent. Runs no step: the base install has neither onnx nor scipy.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

import grpc

from splitmesh.api.compression.v1 import compression_pb2, compression_pb2_grpc
from splitmesh.client.recipes import recipe_to_message
from splitmesh.compress.recipe import Budget, Recipe, Step, make_recipe, parse_step
from splitmesh.compress.report import Report
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import Channels, mesh_errors
from splitmesh.kernel.errors import from_status

SERVICE = "compressor"
START_DEADLINE_S = 60.0
BACKOFF_S = (0.1, 5.0)
"""First and largest wait before a broken watch is opened again."""
MAX_BROKEN_WATCHES = 10
"""In a row, without a state in between; then the compressor counts as gone."""
PAGE = 1000


class CompressionState(StrEnum):
    """Where a compression stands."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    REJECTED = "REJECTED"
    """Done, but over its budget."""


ENDED = (
    CompressionState.SUCCEEDED,
    CompressionState.FAILED,
    CompressionState.CANCELLED,
    CompressionState.REJECTED,
)


@dataclass(frozen=True, slots=True)
class CompressionInfo:
    """A compression now."""

    compression_id: str
    state: CompressionState
    step: str
    """Under way, such as ``int8: calibrate``."""
    progress: float
    """Share of the work done, 0..1."""
    result_version: int
    """0 until it succeeded."""
    model: str
    version: int
    """It started from."""
    recipe: tuple[str, ...]
    """Steps as text."""
    steps_done: int
    """Will not be repeated."""
    create_time: datetime
    error: MeshError | None = None
    """Why it failed or was rejected."""


@dataclass(frozen=True, slots=True)
class CompressionReport:
    """What a compression did."""

    version: int
    """That was made; 0 when it was rejected."""
    report: Report
    html: str
    """One page for people, pictures included; empty unless asked for."""


class CompressionClient:
    """Calls CompressionService. Every method raises the service's MeshErrors, see its proto."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels

    async def compress(
        self,
        model: str,
        version: int,
        recipe: Sequence[str | Step] | Recipe,
        *,
        budget: Budget | None = None,
        seed: int = 0,
        holdout_share: float = 0.3,
        calibration_folder: str = "",
        on_state: Callable[[CompressionInfo], None] | None = None,
        timeout_s: float = 21600.0,
    ) -> tuple[int, Report]:
        """Compress a version; the new version and the report. Repeating a finished call gives the same version.

        Args:
            model: by name.
            version: its number.
            recipe: steps such as ``"bottleneck:channels=4"``, or a whole recipe (its own budget and seed then count).
            budget: what the result may lose; more is not registered: MeshError BUDGET_EXCEEDED.
            seed: of the division of the samples and of all training.
            holdout_share: of the samples, only measured on.
            calibration_folder: below the service's folder of samples; empty: the version's calibration samples.
            on_state: called with the state now and each change.
            timeout_s: DEADLINE_EXPIRED after this many seconds; the compression itself goes on.

        A compression that failed, was cancelled or was rejected raises its own error.
        """
        # One channel for all calls: another instance of the compressor would not know the compression.
        stub = await self._stub()
        request = compression_pb2.CompressModelRequest(
            model=model,
            version=version,
            recipe=recipe_to_message(_recipe(recipe, budget, seed, holdout_share)),
            calibration_folder=calibration_folder,
        )
        try:
            async with asyncio.timeout(timeout_s), mesh_errors():
                started = await stub.CompressModel(request, timeout=START_DEADLINE_S)
                compression_id = started.compression.compression_id
                ended = await _follow(stub, compression_id, on_state)
                if ended.error is not None:
                    raise ended.error
                report = await stub.GetReport(compression_pb2.GetReportRequest(compression_id=compression_id))
        except TimeoutError as error:
            raise MeshError(
                Reason.DEADLINE_EXPIRED, f"the compression did not end within {timeout_s:g} s; it goes on"
            ) from error
        return report.version, Report.from_json(report.report_json.encode())

    async def start(
        self,
        model: str,
        version: int,
        recipe: Sequence[str | Step] | Recipe,
        *,
        budget: Budget | None = None,
        seed: int = 0,
        holdout_share: float = 0.3,
        calibration_folder: str = "",
    ) -> CompressionInfo:
        """As :meth:`compress`, without waiting for it."""
        request = compression_pb2.CompressModelRequest(
            model=model,
            version=version,
            recipe=recipe_to_message(_recipe(recipe, budget, seed, holdout_share)),
            calibration_folder=calibration_folder,
        )
        async with mesh_errors():
            stub = await self._stub()
            started = await stub.CompressModel(request, timeout=START_DEADLINE_S)
        return _info(started.compression)

    async def follow(
        self, compression_id: str, on_state: Callable[[CompressionInfo], None] | None = None
    ) -> CompressionInfo:
        """The state in which a compression ended, after waiting for it; its error is in it, not raised."""
        async with mesh_errors():
            return await _follow(await self._stub(), compression_id, on_state)

    async def list(self, model: str = "", *, limit: int | None = None) -> list[CompressionInfo]:
        """Those the service knows, newest first, of one model or all; ``limit``: at most so many."""
        found: list[CompressionInfo] = []
        request = compression_pb2.ListCompressionsRequest(model=model, page_size=min(limit or PAGE, PAGE))
        while True:
            async with mesh_errors():
                stub = await self._stub()
                page = await stub.ListCompressions(request)
            found += [_info(message) for message in page.compressions]
            if not page.next_page_token or (limit is not None and len(found) >= limit):
                return found[:limit]
            request.page_token = page.next_page_token

    async def cancel(self, compression_id: str) -> CompressionInfo:
        """Stop one; steps that are done stay done. COMPRESSION_NOT_FOUND."""
        async with mesh_errors():
            stub = await self._stub()
            answer = await stub.CancelCompression(
                compression_pb2.CancelCompressionRequest(compression_id=compression_id)
            )
        return _info(answer.compression)

    async def resume(self, compression_id: str) -> CompressionInfo:
        """Go on with one that failed or was cancelled. COMPRESSION_NOT_FOUND, QUEUE_FULL."""
        async with mesh_errors():
            stub = await self._stub()
            answer = await stub.ResumeCompression(
                compression_pb2.ResumeCompressionRequest(compression_id=compression_id)
            )
        return _info(answer.compression)

    async def report(self, compression_id: str, *, html: bool = False) -> CompressionReport:
        """Of one that succeeded or was rejected; NOT_READY before that, its own error when it failed."""
        async with mesh_errors():
            stub = await self._stub()
            answer = await stub.GetReport(
                compression_pb2.GetReportRequest(compression_id=compression_id, with_html=html)
            )
        return CompressionReport(answer.version, Report.from_json(answer.report_json.encode()), answer.html)

    async def _stub(self) -> compression_pb2_grpc.CompressionServiceStub:
        return compression_pb2_grpc.CompressionServiceStub(await self._channels.to(SERVICE))


def _recipe(recipe: Sequence[str | Step] | Recipe, budget: Budget | None, seed: int, holdout_share: float) -> Recipe:
    """A checked recipe; MeshError FIELD_INVALID."""
    if isinstance(recipe, Recipe):
        return recipe
    steps = [parse_step(step) if isinstance(step, str) else step for step in recipe]
    return make_recipe(steps, budget=budget or Budget(), seed=seed, holdout_share=holdout_share)


async def _follow(
    stub: compression_pb2_grpc.CompressionServiceStub,
    compression_id: str,
    on_state: Callable[[CompressionInfo], None] | None,
) -> CompressionInfo:
    """Until it has ended, over restarts of the service."""
    broken = 0
    while True:
        try:
            async with aclosing(_states(stub, compression_id)) as states:
                async for compression in states:
                    broken = 0
                    info = _info(compression)
                    if on_state is not None:
                        on_state(info)
                    if info.state in ENDED:
                        return info
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
    state = CompressionState(name)
    error = from_status(message.error) if message.HasField("error") else None
    if state is CompressionState.CANCELLED and error is None:
        error = MeshError(Reason.CANCELLED, "the compression was cancelled; it can be resumed")
    return CompressionInfo(
        compression_id=message.compression_id,
        state=state,
        step=message.step,
        progress=message.progress,
        result_version=message.result_version,
        model=message.model,
        version=message.version,
        recipe=tuple(message.recipe),
        steps_done=message.steps_done,
        create_time=message.create_time.ToDatetime(tzinfo=UTC),
        error=error,
    )
