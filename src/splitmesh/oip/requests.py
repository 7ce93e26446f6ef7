"""One request's way: parse, find the version, let the node answer, make the message, count."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from splitmesh.api.oip.v2 import grpc_service_pb2 as pb
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.kernel.wire import LARGE_BYTES, Lifted
from splitmesh.oip.backend import Backend, Inferred, Served, VersionMovedError
from splitmesh.oip.parameters import MAX_DEADLINE_MS
from splitmesh.oip.request import Call, call_from_message
from splitmesh.oip.response import check_wanted, response_to_message
from splitmesh.oip.statistics import Statistics
from splitmesh.tensor.spec import TensorLimits

FINAL = "triton_final_response"

Answer = pb.ModelInferResponse | Lifted[pb.ModelInferResponse]
"""With its tensors in it, or, where they are large, beside it."""


class Requests:
    """Answers requests, whether they came alone or on a stream."""

    def __init__(self, backend: Backend, limits: TensorLimits) -> None:
        self._backend = backend
        self._limits = limits
        self.statistics = Statistics()

    async def answer(self, request: Lifted[pb.ModelInferRequest], left_s: float | None = None) -> Answer:
        """The answer, large tensors beside it. ``left_s``: what the call's own deadline leaves, seconds.

        Raises MeshError for what the node cannot find, take or answer in time.
        """
        began_ns = time.perf_counter_ns()
        try:
            return await self._answer(request, left_s, began_ns)
        except VersionMovedError:
            return await self._answer(request, left_s, began_ns)

    async def _answer(self, request: Lifted[pb.ModelInferRequest], left_s: float | None, began_ns: int) -> Answer:
        message = request.message
        served = await self._backend.served(message.model_name, message.model_version)
        try:
            call = await self._call(request, left_s, began_ns)
            _check(call, served)
            inferred = await self._backend.infer(served, call)
            made_ns = time.perf_counter_ns()
            answer = _response(served, call, inferred)
        except VersionMovedError:
            raise
        except BaseException:
            self.statistics.refused(served, time.perf_counter_ns() - began_ns)
            raise
        ended_ns = time.perf_counter_ns()
        self.statistics.answered(
            served,
            samples=call.samples,
            total_ns=ended_ns - began_ns,
            spent=inferred.spent,
            output_ns=ended_ns - made_ns,
            batches=inferred.batches,
        )
        return answer

    async def _call(self, request: Lifted[pb.ModelInferRequest], left_s: float | None, began_ns: int) -> Call:
        arguments = (request.message, request.blobs, self._limits)
        # Typed contents are turned element by element: not on the loop.
        call = (
            call_from_message(*arguments) if request.blobs else await asyncio.to_thread(call_from_message, *arguments)
        )
        deadlines_ms = [float(call.options.deadline_ms)] if call.options.deadline_ms else []
        deadlines_ms += [] if left_s is None else [left_s * 1000]
        if not deadlines_ms:
            return call
        spent_ms = (time.perf_counter_ns() - began_ns) / 1e6
        left_ms = max(1, min(round(min(deadlines_ms) - spent_ms), MAX_DEADLINE_MS))
        return replace(call, options=replace(call.options, deadline_ms=left_ms))


def _check(call: Call, served: Served) -> None:
    """What can be refused before anything is decoded."""
    check_wanted(call.outputs, [info.name for info in served.manifest.whole.outputs])
    if served.max_batch and call.samples > served.max_batch:
        raise field_error("inputs", f"hold {call.samples} samples; {served.model!r} takes at most {served.max_batch}")
    if not served.max_batch and call.samples != 1:
        raise MeshError(
            Reason.TENSOR_SHAPE_MISMATCH, f"{served.model!r} takes one sample at a time: the first dimension must be 1"
        )


def _response(served: Served, call: Call, inferred: Inferred) -> Answer:
    parameters = dict(inferred.parameters)
    if call.options.final_marked:
        parameters[FINAL] = True
    message, raw = response_to_message(
        model=served.model,
        version=str(served.version),
        request_id=call.id,
        outputs=inferred.outputs,
        wanted=call.outputs,
        labels=inferred.labels,
        parameters=parameters,
    )
    if sum(map(len, raw)) >= LARGE_BYTES:
        return Lifted(message, raw)
    message.raw_output_contents.extend(map(bytes, raw))
    return message
