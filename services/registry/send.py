"""Writes a stream of responses with a deadline on each, so that a client that reads nothing holds nothing for long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, TypeVar

import grpc

from splitmesh.errors import MeshError, Reason

Item = TypeVar("Item")


async def send(
    context: grpc.aio.ServicerContext, items: AsyncGenerator[Item, None], encode: Callable[[Item], Any], idle_s: float
) -> None:
    """Everything in order; DEADLINE_EXPIRED when a write takes longer than ``idle_s``.

    ``items`` is closed before the error goes out: the status of a call waits until the client reads again (measured:
    as long as it does not), and what the items hold must not wait with it.
    """
    async with aclosing(items):
        async for item in items:
            try:
                async with asyncio.timeout(idle_s):
                    await context.write(encode(item))
            except TimeoutError as error:
                raise MeshError(
                    Reason.DEADLINE_EXPIRED, f"the client read nothing for {idle_s} s", retry_after_s=1.0
                ) from error
