"""What happens around every RPC of every server, in one fixed order: telemetry, errors, deadline.

A servicer may raise MeshError or anything else; here it becomes a status. No servicer has a try/except of its own.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
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

TRACEPARENT_KEY = "traceparent"
FRAME_METHODS = ("Infer", "StreamInfer", "Run")
"""Methods of the data path: their spans are per frame and made by the service, not per call."""


class AroundInterceptor(grpc.aio.ServerInterceptor):
    """Telemetry, errors and deadline around every handler of this server."""

    def __init__(self, telemetry: Telemetry, default_deadline_s: float) -> None:
        self._telemetry = telemetry
        self._default_deadline_s = default_deadline_s

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Wrap the handler that would run."""
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith("/splitmesh."):
            return handler
        return self._wrap(handler, handler_call_details.method)

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
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _around(self, behaviour: Behaviour, method: str, deadline_s: float | None) -> Behaviour:
        if inspect.isasyncgenfunction(behaviour):

            async def generator(request: Any, context: Context) -> AsyncIterator[Any]:
                async with AsyncExitStack() as stack:
                    await self._enter(stack, method, context, deadline_s)
                    async with aclosing(behaviour(request, context)) as responses:
                        async for response in responses:
                            yield response

            return generator

        async def coroutine(request: Any, context: Context) -> Any:
            async with AsyncExitStack() as stack:
                await self._enter(stack, method, context, deadline_s)
                return await behaviour(request, context)

        return coroutine

    async def _enter(self, stack: AsyncExitStack, method: str, context: Context, deadline_s: float | None) -> None:
        # The order: errors outermost, so that whatever the others raise becomes a status.
        await stack.enter_async_context(_errors(context, method))
        name = method.rpartition("/")[2]
        if name not in FRAME_METHODS:
            metadata = {str(key): str(value) for key, value in context.invocation_metadata() or ()}
            attributes = {Attr.RPC_METHOD: method.lstrip("/")}
            stack.enter_context(
                self._telemetry.span(
                    Span.RPC_SERVER, traceparent=metadata.get(TRACEPARENT_KEY, ""), attributes=attributes
                )
            )
        if deadline_s is not None and context.time_remaining() is None:
            await stack.enter_async_context(_deadline(deadline_s))


@asynccontextmanager
async def _errors(context: Context, method: str) -> AsyncIterator[None]:
    try:
        yield
    except MeshError as error:
        log.info("%s refused: %s", method, error)
        await context.abort_with_status(to_grpc(error))
    except grpc.aio.AbortError:
        raise
    except DecodeError:
        # Of a stream; a single request is refused by grpc before it comes here.
        await context.abort_with_status(to_grpc(MeshError(Reason.PROTOCOL_VIOLATION, "a message cannot be decoded")))
    except Exception:
        # The text of an unexpected exception may hold paths or data: it goes to the log, not to the caller.
        log.exception("%s failed", method)
        await context.abort_with_status(to_grpc(MeshError(Reason.INTERNAL, "unexpected failure; see the server's log")))


@asynccontextmanager
async def _deadline(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds) as ours:
            yield
    except TimeoutError as error:
        if not ours.expired():
            raise
        raise MeshError(Reason.DEADLINE_EXPIRED, f"not done within the server's default of {seconds} s") from error
