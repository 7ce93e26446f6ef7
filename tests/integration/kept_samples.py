"""Heads that only keep samples and serve them, on real ports, and samples for them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from edge.head.config import HeadSettings
from edge.head.samples.servicer import SampleServicer, binding
from splitmesh.client.samples import SampleClient
from splitmesh.kernel.channels import Channels
from splitmesh.kernel.discovery_static import StaticDiscovery
from splitmesh.kernel.lifecycle import App, Host, Kernel
from splitmesh.samples.kept import StoreLimits
from splitmesh.samples.store import SampleStore
from tests.unit.kept_frames import settings

ROOMY = StoreLimits(min_free_bytes=0)


@asynccontextmanager
async def serving(folder: Path, *, servicer: dict[str, Any] | None = None, **fields: Any) -> AsyncIterator[str]:
    """The address of a head whose `data_dir` is ``folder``."""

    def build(settings: HeadSettings, kernel: Kernel) -> App:
        served = SampleServicer(settings, **(servicer or {}))
        return App("head", [binding(served)], parts=[served])

    async with Host("head", settings(folder, drain_s=1.0, **fields), build) as host:
        yield host.address


@asynccontextmanager
async def client_of(addresses: Sequence[str]) -> AsyncIterator[SampleClient]:
    channels = Channels(StaticDiscovery({"head": list(addresses)}))
    try:
        yield SampleClient(channels)
    finally:
        await channels.close()


@asynccontextmanager
async def head_with(
    folder: Path, *, servicer: dict[str, Any] | None = None, **fields: Any
) -> AsyncIterator[tuple[SampleStore, SampleClient]]:
    """One head, the store that it would write into, and a client of it."""
    async with AsyncExitStack() as stack:
        store = stack.enter_context(SampleStore(folder / "samples", ROOMY))
        address = await stack.enter_async_context(serving(folder, servicer=servicer, **fields))
        yield store, await stack.enter_async_context(client_of([address]))
