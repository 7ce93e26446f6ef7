"""What happens around every RPC of every server, in one fixed order: telemetry, errors, deadline.

A servicer may raise MeshError or anything else; here it becomes a status. No servicer has a try/except of its own.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, aclosing, nullcontext
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.errors import to_grpc
from splitmesh.kernel.signals import Attr, Span
from splitmesh.kernel.telemetry import Telemetry

log = logging.getLogger(__name__)

Context = Any
"""grpc.aio.ServicerContext; grpc ships no types."""
Handler = Any
"""grpc.RpcMethodHandler."""
Behaviour = Callable[[Any, Context], Any]
Deserializer = Callable[[bytes], Any]
Serializer = Callable[[Any], bytes]

TRACEPARENT_KEY = "traceparent"
WRAPPED = ("/splitmesh.", "/inference.")
"""Whose methods are ours: the project's services and the Open Inference Protocol."""
FRAME_METHODS = ("Infer", "StreamInfer", "Run", "ModelInfer", "ModelStreamInfer")
"""Methods of the data path: their spans are per frame and made by the service, not per call."""


class AroundInterceptor(grpc.aio.ServerInterceptor):
    """Telemetry, errors and deadline around every handler of this server."""

    def __init__(
        self,
        telemetry: Telemetry,
        default_deadline_s: float,
        *,
        deserializers: Mapping[str, Deserializer] | None = None,
        serializers: Mapping[str, Serializer] | None = None,
    ) -> None:
        """``deserializers`` and ``serializers`` by full method, ``/service/method``, in place of the stubs' own."""
        self._telemetry = telemetry
        self._default_deadline_s = default_deadline_s
        self._deserializers = deserializers or {}
        self._serializers = serializers or {}
        self._wrapped: dict[str, tuple[Handler, Handler]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Wrap the handler that would run."""
        handler, method = await continuation(handler_call_details), handler_call_details.method
        if handler is None or not method.startswith(WRAPPED):
            return handler
        # Kept: this runs for every call, and a server's handlers stay the same. Only methods that exist come here.
        known, wrapped = self._wrapped.get(method, (None, None))
        if known is not handler:
            wrapped = self._wrap(handler, method)
            self._wrapped[method] = (handler, wrapped)
        return wrapped

    def _wrap(self, handler: Handler, method: str) -> Handler:
        make = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[bool(handler.request_streaming), bool(handler.response_streaming)]
        behaviour: Behaviour = next(
            found
            for found in (handler.unary_unary, handler.unary_stream, handler.stream_unary, handler.stream_stream)
            if found
        )
        deadline_s = None if handler.request_streaming or handler.response_streaming else self._default_deadline_s
        return make(
            self._around(behaviour, method, deadline_s),
            request_deserializer=self._deserializers.get(method, handler.request_deserializer),
            response_serializer=self._serializers.get(method, handler.response_serializer),
        )

    def _around(self, behaviour: Behaviour, method: str, deadline_s: float | None) -> Behaviour:
        traced = method.rpartition("/")[2] not in FRAME_METHODS
        if inspect.isasyncgenfunction(behaviour):

            async def generator(request: Any, context: Context) -> AsyncIterator[Any]:
                try:
                    with self._span(method, context) if traced else nullcontext():
                        async with aclosing(behaviour(request, context)) as responses:
                            async for response in responses:
                                yield response
                except Exception as error:
                    await _abort(context, method, error)

            return generator

        async def coroutine(request: Any, context: Context) -> Any:
            ours = None if deadline_s is None or context.time_remaining() is not None else deadline_s
            try:
                with self._span(method, context) if traced else nullcontext():
                    return await _within(behaviour(request, context), ours)
            except Exception as error:
                await _abort(context, method, error)

        return coroutine

    def _span(self, method: str, context: Context) -> AbstractContextManager[object]:
        metadata = {str(key): str(value) for key, value in context.invocation_metadata() or ()}
        return self._telemetry.span(
            Span.RPC_SERVER,
            traceparent=metadata.get(TRACEPARENT_KEY, ""),
            attributes={Attr.RPC_METHOD: method.lstrip("/")},
        )


async def _abort(context: Context, method: str, error: Exception) -> None:
    """End the call with the status that stands for the error."""
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if isinstance(error, MeshError):
        log.info("%s refused: %s", method, error)
    elif isinstance(error, DecodeError):
        # Of a stream; a single request is refused by grpc before it comes here.
        error = MeshError(Reason.PROTOCOL_VIOLATION, "a message cannot be decoded")
    else:
        # The text of an unexpected exception may hold paths or data: it goes to the log, not to the caller.
        log.error("%s failed", method, exc_info=error)
        error = MeshError(Reason.INTERNAL, "unexpected failure; see the server's log")
    await context.abort_with_status(to_grpc(error))


async def _within(answer: Awaitable[Any], seconds: float | None) -> Any:
    if seconds is None:
        return await answer
    try:
        async with asyncio.timeout(seconds) as ours:
            return await answer
    except TimeoutError as error:
        if not ours.expired():
            raise
        raise MeshError(Reason.DEADLINE_EXPIRED, f"not done within the server's default of {seconds} s") from error
