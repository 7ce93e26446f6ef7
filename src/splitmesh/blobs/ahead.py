"""One step ahead: the next item is made while the last one is used."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any, TypeVar

Item = TypeVar("Item")
_END: Any = object()


async def one_ahead(items: AsyncGenerator[Item, None]) -> AsyncGenerator[Item, None]:
    """The same items; at most one is made before it is asked for. Closing it closes them."""
    async with aclosing(items):
        coming = asyncio.ensure_future(anext(items, _END))
        try:
            while (item := await coming) is not _END:
                coming = asyncio.ensure_future(anext(items, _END))
                yield item
        finally:
            await drop(coming)


async def drop(task: asyncio.Future[Any]) -> None:
    """Ends a task whose result nobody wants, and waits until it has ended."""
    task.cancel()
    with suppress(asyncio.CancelledError, Exception):
        await task
