"""Many small contents over the link to the registry, several in a message and several messages in a row.

Knows the calls FindMissing, PushContents and PullContents. After a broken link it goes on with what has not arrived. Does not
know what the contents are.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterable, Iterator, Sequence
from contextlib import aclosing, suppress
from typing import Any

from splitmesh.api.registry.v1 import registry_pb2 as pb
from splitmesh.api.registry.v1.registry_pb2_grpc import RegistryServiceStub
from splitmesh.client.artifacts import SERVICE, TRIES, Artifacts, in_time
from splitmesh.client.rate import Rate
from splitmesh.client.registry_messages import digest_from_message
from splitmesh.client.registry_values import OnProgress
from splitmesh.client.transfer import PIECE_BYTES, Patience, check_digest, is_passing
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import Channels, mesh_errors

MESSAGE_CONTENTS = 256
"""Most contents in one message; together they have at most ``PIECE_BYTES``."""
GROUP_BYTES, GROUP_CONTENTS = 16 * PIECE_BYTES, 4096
"""Sent by one stream, and held in memory until the registry has it on disk."""
ASK = 10_000
"""Most digests in one question."""
ASK_DEADLINE_S = 60.0
"""Deadline of FindMissing, seconds: a store elsewhere is asked for each of them."""
THREAD_BYTES = 256 * 1024
PULL = 1000
"""Contents asked for at once."""
FEWER = 8

Content = tuple[str, bytes]
"""SHA-256 and data."""


class SmallContents:
    """Contents of the service ``registry`` that ``channels`` can find; those of more than 1 MiB go by ``artifacts``."""

    def __init__(self, channels: Channels, artifacts: Artifacts, rate: Rate | None = None) -> None:
        self._channels = channels if rate is None else channels.paced()
        self._artifacts = artifacts
        self._rate = rate

    async def missing(self, sha256s: Sequence[str]) -> list[str]:
        """See :meth:`splitmesh.client.registry.RegistryClient.missing`."""
        found: list[str] = []
        for start in range(0, len(sha256s), ASK):
            found += await self._missing(sha256s[start : start + ASK])
        return found

    async def push(self, contents: AsyncIterable[Content], on_progress: OnProgress | None) -> int:
        """See :meth:`splitmesh.client.registry.RegistryClient.push_contents`."""
        count = kept_bytes = 0
        async for group in _groups(contents):
            size_bytes = sum(len(data) for _, data in group)
            if len(group[0][1]) > PIECE_BYTES:
                await self._artifacts.push(group[0][0], group[0][1], None)
            else:
                await self._push_group(group)
            count += len(group)
            kept_bytes += size_bytes
            if on_progress is not None:
                on_progress(kept_bytes, kept_bytes)
        return count

    async def pull(self, sha256s: Sequence[str]) -> AsyncGenerator[Content, None]:
        """See :meth:`splitmesh.client.registry.RegistryClient.pull_contents`."""
        patience = Patience(tries=TRIES)
        at, most = 0, PULL
        while at < len(sha256s):
            asked = sha256s[at : at + most]
            try:
                async with aclosing(self._received(asked)) as received:
                    async for content in received:
                        at += 1
                        patience.reached(at)
                        yield content
                most = min(PULL, most * FEWER)
            except MeshError as error:
                if error.reason is Reason.FRAME_TOO_LARGE:
                    # One of them is large: found by asking for fewer and fewer.
                    if len(asked) == 1:
                        yield asked[0], await self._artifacts.pull_unsized(asked[0])
                        at += 1
                    most = max(1, most // FEWER)
                elif is_passing(error):
                    await patience.after(error)
                else:
                    raise

    async def _missing(self, sha256s: Sequence[str]) -> list[str]:
        patience = Patience(tries=TRIES)
        while True:
            try:
                async with mesh_errors():
                    stub = await self._stub()
                    answer = await stub.FindMissing(pb.FindMissingRequest(sha256s=sha256s), timeout=ASK_DEADLINE_S)
                return [digest_from_message(sha) for sha in answer.sha256s]
            except MeshError as error:
                if not is_passing(error):
                    raise
                await patience.after(error)

    async def _push_group(self, group: Sequence[Content]) -> None:
        patience = Patience(tries=TRIES)
        while group:
            try:
                await self._send(group)
                return
            except MeshError as error:
                if not is_passing(error):
                    raise
                # What arrived, though its acknowledgement did not, is not sent again.
                left = set(await self._missing([sha for sha, _ in group]))
                if len(left) < len({sha for sha, _ in group}):
                    patience.renewed()
                group = [content for content in group if content[0] in left]
                if group:
                    await patience.after(error)

    async def _send(self, group: Sequence[Content]) -> None:
        """One stream; all of it is on disk when it returns."""
        messages = list(_messages(group))
        async with mesh_errors():
            call: Any = (await self._stub()).PushContents()
        try:
            # After the first message comes its acknowledgement, or the reason of an early refusal: what is written to a
            # call that was answered already would hide the answer.
            await self._write(call, messages[:1])
            await _acknowledged(call, 1)
            await self._write(call, messages[1:])
            with suppress(asyncio.InvalidStateError):
                await in_time(call.done_writing())
            await _acknowledged(call, len(messages))
        finally:
            call.cancel()

    async def _write(self, call: Any, messages: Sequence[Sequence[Content]]) -> None:
        """Ends early when the registry has ended the call; reading from it tells why."""
        with suppress(asyncio.InvalidStateError):
            for contents in messages:
                if self._rate is not None:
                    await self._rate.take(sum(len(data) for _, data in contents))
                message = pb.PushContentsRequest(contents=[pb.Content(sha256=sha, data=data) for sha, data in contents])
                async with mesh_errors():
                    await in_time(call.write(message))

    async def _received(self, sha256s: Sequence[str]) -> AsyncGenerator[Content, None]:
        async with mesh_errors():
            call: Any = (await self._stub()).PullContents(pb.PullContentsRequest(sha256s=sha256s))
        at = 0
        try:
            while at < len(sha256s):
                async with mesh_errors():
                    message = await in_time(call.read())
                if not isinstance(message, pb.PullContentsResponse):
                    raise MeshError(Reason.SERVICE_UNAVAILABLE, f"the download ended after {at} contents")
                if self._rate is not None:
                    await self._rate.take(sum(len(one.data) for one in message.contents))
                for one in message.contents:
                    if at == len(sha256s) or one.sha256 != sha256s[at]:
                        raise MeshError(Reason.PROTOCOL_VIOLATION, f"the registry sends {one.sha256[:80]!r} unasked")
                    await _check(one.sha256, one.data)
                    at += 1
                    yield one.sha256, one.data
        finally:
            call.cancel()

    async def _stub(self) -> RegistryServiceStub:
        return RegistryServiceStub(await self._channels.to(SERVICE))


async def _groups(contents: AsyncIterable[Content]) -> AsyncGenerator[Sequence[Content], None]:
    """What one stream sends: small contents, or a single large one."""
    group: list[Content] = []
    size_bytes = 0
    async for sha256, data in contents:
        await _check(sha256, data)
        is_large = len(data) > PIECE_BYTES
        if group and (is_large or size_bytes + len(data) > GROUP_BYTES or len(group) == GROUP_CONTENTS):
            yield group
            group, size_bytes = [], 0
        if is_large:
            yield [(sha256, data)]
        else:
            group.append((sha256, data))
            size_bytes += len(data)
    if group:
        yield group


def _messages(group: Sequence[Content]) -> Iterator[Sequence[Content]]:
    message: list[Content] = []
    size_bytes = 0
    for content in group:
        if message and (size_bytes + len(content[1]) > PIECE_BYTES or len(message) == MESSAGE_CONTENTS):
            yield message
            message, size_bytes = [], 0
        message.append(content)
        size_bytes += len(content[1])
    yield message


async def _acknowledged(call: Any, messages: int) -> None:
    """So many messages are on disk."""
    acknowledged = 0
    while acknowledged < messages:
        async with mesh_errors():
            answer = await in_time(call.read())
        if not isinstance(answer, pb.PushContentsResponse):
            raise MeshError(Reason.SERVICE_UNAVAILABLE, f"the registry ended the upload after {acknowledged} messages")
        acknowledged = answer.messages


async def _check(sha256: str, data: bytes) -> None:
    # In a thread only where that costs less than the work.
    found = hashlib.sha256(data) if len(data) < THREAD_BYTES else await asyncio.to_thread(hashlib.sha256, data)
    check_digest(found.hexdigest(), sha256)
