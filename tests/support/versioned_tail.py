"""A tail that answers every frame with the class of its stream's version, so that an answer of a mixed pair shows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import grpc
import numpy as np

from splitmesh.api.segment.v1 import segment_pb2 as pb
from splitmesh.kernel.tensors import tensor_to_message
from tests.support.fake_tail import FakeTail
from tests.support.models import LABELS


def class_of(version: int) -> int:
    """What such a tail says of every frame."""
    return version % len(LABELS)


class VersionedTail(FakeTail):
    """Accepts versions in ``accepts`` at once, others when they come there; every answer takes ``takes_s``."""

    def __init__(self, name: str = "versioned", *, accepts: set[int] | None = None, takes_s: float = 0.0) -> None:
        super().__init__(name, credit=1000)
        self._accepts = accepts
        self._accepted = asyncio.Event()
        self._takes_s = takes_s

    def accept(self, version: int) -> None:
        """From now on."""
        if self._accepts is not None:
            self._accepts.add(version)
        self._accepted.set()

    async def Run(self, requests: AsyncIterator[pb.RunRequest], context: Any) -> None:
        """Every frame by itself, by the version that its stream was opened for."""
        version, tasks = 0, set[asyncio.Task[None]]()
        async for request in requests:
            kind = request.WhichOneof("message")
            if kind == "open":
                version = request.open.version
                self.opened.append(request.open)
                while self._accepts is not None and version not in self._accepts:
                    self._accepted.clear()
                    await self._accepted.wait()
                await context.write(pb.RunResponse(accepted=pb.Accepted(node=self.name, credit=self.credit)))
            elif kind == "frame":
                self.seen.append(request.frame)
                task = asyncio.create_task(self._say(request.frame.frame_id, version, context))
                tasks.add(task)
                task.add_done_callback(tasks.discard)

    async def _say(self, frame_id: int, version: int, context: Any) -> None:
        await asyncio.sleep(self._takes_s)
        logits = np.zeros((1, len(LABELS)), np.float32)
        logits[0, class_of(version)] = 9.0
        result = pb.Result(frame_id=frame_id, outputs=[tensor_to_message("logits", logits)])
        with suppress(grpc.aio.BaseError, asyncio.InvalidStateError):  # the stream is over: nobody reads it
            async with self._writing:
                await context.write(pb.RunResponse(result=result))
