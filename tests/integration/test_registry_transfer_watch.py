"""The client's side of a watch: whatever the streams do, every move is told once, and a busy follower hears the newest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import pytest

from splitmesh.api.registry.v1 import registry_pb2 as pb
from splitmesh.client.registry import AliasChange, RegistryClient
from splitmesh.client.registry_messages import change_from_message
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import Channels
from splitmesh.kernel.errors import to_grpc
from tests.support.scripted_registry import Scripted, serving

WAIT_S = 20.0


def move(sequence: int, version: int, alias: str = "prod") -> pb.AliasMove:
    return pb.AliasMove(sequence=sequence, model="m", alias=alias, version=version)


def told(
    sequence: int, version: int, *, up_to: int | None = None, alias: str = "prod", keyring: int = 0, gone: bool = False
) -> pb.WatchModelResponse:
    """A move as the registry tells it."""
    message = pb.WatchModelResponse(
        move=move(sequence, version, alias), sequence=sequence if up_to is None else up_to, keyring_version=keyring
    )
    if version and not gone:
        message.version.CopyFrom(pb.ModelVersion(model="m", version=version))
    return message


def now(*moves: pb.WatchModelResponse, up_to: int = 0, keyring: int = 0) -> list[pb.WatchModelResponse]:
    """Where the aliases point, as the registry tells it once in each stream; none of them: nowhere."""
    messages = [*moves] or [pb.WatchModelResponse(sequence=up_to, keyring_version=keyring)]
    for message in moves:
        message.present = True
    messages[-1].present_complete = True
    messages[-1].sequence = max(messages[-1].sequence, up_to)
    return messages


def keyring(version: int, up_to: int) -> pb.WatchModelResponse:
    """No move, only a keyring."""
    return pb.WatchModelResponse(sequence=up_to, keyring_version=version)


class Script(Scripted):
    """One list of messages per stream, in turn; the last stream stays open. An error in it ends its stream."""

    def __init__(self, *streams: Sequence[pb.WatchModelResponse | MeshError]) -> None:
        self.streams = list(streams)
        self.asked: list[int] = []
        self.history: list[pb.AliasMove] = []
        self.deleted: set[int] = set()

    async def WatchModel(self, request: pb.WatchModelRequest, context: Any) -> AsyncIterator[pb.WatchModelResponse]:
        self.asked.append(request.after_sequence)
        for message in self.streams.pop(0) if self.streams else ():
            if isinstance(message, MeshError):
                await context.abort_with_status(to_grpc(message))
            else:
                yield message
        if not self.streams:
            await asyncio.Event().wait()

    async def ListAliasMoves(self, request: pb.ListAliasMovesRequest, context: Any) -> pb.ListAliasMovesResponse:
        if not self.history:
            await context.abort_with_status(to_grpc(MeshError(Reason.MODEL_NOT_FOUND, "no model")))
        return pb.ListAliasMovesResponse(moves=reversed(self.history))

    async def GetVersion(self, request: pb.GetVersionRequest, context: Any) -> pb.GetVersionResponse:
        if request.version in self.deleted:
            await context.abort_with_status(to_grpc(MeshError(Reason.VERSION_NOT_FOUND, "deleted")))
        return pb.GetVersionResponse(version=pb.ModelVersion(model="m", version=request.version))


class Heard:
    """A trust that is told of keyrings only."""

    def __init__(self) -> None:
        self.keyrings: list[int] = []
        self.keyring_version = 0

    async def verify(self, *_: Any) -> None: ...

    def withdrawn(self, *_: Any) -> None: ...

    async def check_signer(self, *_: Any) -> None: ...

    def sign(self, *_: Any) -> None: ...

    def heard(self, keyring_version: int) -> None:
        self.keyrings.append(keyring_version)


async def changes(channels: Channels, count: int, *, alias: str = "", after: int = 0) -> list[AliasChange]:
    """The next changes of a new watch."""
    found: list[AliasChange] = []
    async with asyncio.timeout(WAIT_S), aclosing(RegistryClient(channels).watch_model("m", alias, after)) as watch:
        while len(found) < count:
            found.append(await anext(watch))
    return found


def places(found: Sequence[AliasChange]) -> list[tuple[int, int | None]]:
    """Sequence of each move, and the version that came with it."""
    return [
        (change.move.sequence if change.move else 0, change.version.version if change.version else None)
        for change in found
    ]


AWAY = MeshError(Reason.NOT_READY, "the registry is stopping", retry_after_s=0.0)


async def test_the_picture_comes_first_and_every_move_once_over_broken_streams() -> None:
    script = Script(
        [*now(told(3, 1, alias="canary"), told(5, 2, up_to=6)), AWAY],
        [told(7, 3), *now(told(3, 1, alias="canary"), told(7, 3)), AWAY],
        [],
        # A registry that repeats itself is not repeated.
        [told(7, 3), *now(told(3, 1, alias="canary"), told(7, 3)), told(8, 0), told(9, 1)],
    )
    async with serving(script) as channels:
        found = await changes(channels, 5)
    assert places(found) == [(3, 1), (5, 2), (7, 3), (8, None), (9, 1)]
    assert script.asked == [0, 6, 7, 7]
    assert found[0].move is not None
    assert (found[0].move.alias, found[0].sequence, found[1].sequence) == ("canary", 3, 6)


async def test_a_picture_broken_off_in_the_middle_is_completed() -> None:
    first, *_ = now(told(3, 1, alias="a"), told(4, 1, alias="b"))
    picture = now(told(3, 1, alias="a"), told(4, 1, alias="b"))
    script = Script([first, AWAY], [told(4, 1, alias="b"), *picture, told(5, 2, alias="c")])
    async with serving(script) as channels:
        assert places(await changes(channels, 3)) == [(3, 1), (4, 1), (5, 2)]
    assert script.asked == [0, 3]


async def test_a_watch_goes_on_from_where_its_caller_was_and_says_once_where_that_is() -> None:
    picture = now(told(8, 1), told(11, 2, alias="canary"), up_to=12)
    script = Script([told(11, 2, alias="canary"), *picture, told(13, 4)])
    async with serving(script) as channels:
        found = await changes(channels, 3, after=10)
    assert places(found) == [(11, 2), (8, 1), (13, 4)]
    assert [change.present for change in found] == [False, True, False]
    assert script.asked == [10]


async def test_moves_are_not_lost_where_the_registry_had_told_no_sequence_yet() -> None:
    script = Script([*now(), AWAY], [*now(told(4, 3)), told(5, 4)])
    async with serving(script) as channels, aclosing(RegistryClient(channels).watch_model("m")) as watch:
        async with asyncio.timeout(WAIT_S):
            first = await anext(watch)
            assert (first.move, first.version, first.sequence) == (None, None, 0)
            script.history = [move(1, 1), move(2, 2), move(4, 3)]
            script.deleted = {2}
            found = [await anext(watch) for _ in range(4)]
    assert places(found) == [(1, 1), (2, None), (4, 3), (5, 4)]
    assert script.asked == [0, 4]


async def test_a_move_between_the_question_and_the_stream_is_no_hole() -> None:
    class Late(Script):
        async def WatchModel(self, request: Any, context: Any) -> AsyncIterator[pb.WatchModelResponse]:
            if len(self.asked) == 1:
                self.history = [move(1, 1), move(2, 2)]
            async for message in super().WatchModel(request, context):
                yield message

    script = Late([*now(), AWAY], now(told(2, 2)), [*now(told(2, 2)), told(3, 3)])
    async with serving(script) as channels:
        assert places(await changes(channels, 4)) == [(0, None), (1, 1), (2, 2), (3, 3)]
    assert script.asked == [0, 0, 2]


async def test_keyrings_are_heard_of_and_are_no_change() -> None:
    trust = Heard()
    script = Script([*now(up_to=3, keyring=1), keyring(2, up_to=3), told(4, 1, keyring=2)])
    async with serving(script) as channels:
        watch = RegistryClient(channels, trust=trust).watch_model("m", "prod")
        async with asyncio.timeout(WAIT_S), aclosing(watch):
            found = [await anext(watch) for _ in range(2)]
    assert trust.keyrings == [1, 2, 2]
    assert places(found) == [(0, None), (4, 1)]
    assert [change.keyring_version for change in found] == [1, 2]


@pytest.mark.parametrize("reason", [Reason.FIELD_INVALID, Reason.UNIMPLEMENTED])
async def test_a_wrong_request_is_not_asked_for_ever(reason: Reason) -> None:
    script = Script([MeshError(reason, "no")], [MeshError(reason, "no")], [])
    async with serving(script) as channels:
        with pytest.raises(MeshError) as caught:
            await changes(channels, 1)
        assert caught.value.reason is reason
        with pytest.raises(MeshError):
            await anext(RegistryClient(channels).watch_alias("m", "prod"))


async def test_an_answer_that_contradicts_itself_or_the_question_is_a_violation() -> None:
    another_version, another_model, another_alias, without_move = (told(3, 1) for _ in range(4))
    another_version.version.version = 2
    another_model.move.model = another_model.version.model = "n"
    another_alias.move.alias = "canary"
    without_move.ClearField("move")
    for message in (another_version, another_model, another_alias, without_move):
        async with serving(Script([message])) as channels:
            with pytest.raises(MeshError) as caught:
                await changes(channels, 1, alias="prod")
        assert caught.value.reason is Reason.PROTOCOL_VIOLATION, message


async def test_a_follower_hears_where_the_alias_points_and_nothing_twice() -> None:
    script = Script(
        [*now(up_to=2), AWAY],
        [told(3, 1), told(4, 1), *now(told(4, 1)), AWAY],
        # Deleted since: the alias has moved on, and that comes next.
        [told(5, 2, gone=True), told(6, 3), *now(told(6, 3)), AWAY],
        [told(7, 0), *now(up_to=7)],
    )
    async with serving(script) as channels, aclosing(RegistryClient(channels).watch_alias("m", "prod")) as states:
        found: list[int | None] = []
        async with asyncio.timeout(WAIT_S):
            while len(found) < 4:
                state = await anext(states)
                found.append(state.version if state else None)
    assert found == [None, 1, 3, None]


async def test_a_follower_that_was_busy_hears_the_newest_only(monkeypatch: pytest.MonkeyPatch) -> None:
    moves = [told(sequence, sequence % 7 + 1) for sequence in range(2, 500)]
    script = Script([*now(told(1, 2)), *moves], [told(500, 9)])
    heard = asyncio.Event()

    def change(message: pb.WatchModelResponse, *asked: str) -> AliasChange:
        if message.sequence == 500:
            asyncio.get_running_loop().call_soon(heard.set)
        return change_from_message(message, *asked)

    monkeypatch.setattr("splitmesh.client.registry_watch.change_from_message", change)
    async with serving(script) as channels, aclosing(RegistryClient(channels).watch_alias("m", "prod")) as states:
        async with asyncio.timeout(WAIT_S):
            assert (await anext(states)) is not None
            await heard.wait()
            state = await anext(states)
    assert state is not None
    assert state.version == 9


async def test_a_watch_that_is_left_ends_its_stream() -> None:
    ended = asyncio.Event()

    class Waiting(Script):
        async def WatchModel(self, request: Any, context: Any) -> AsyncIterator[pb.WatchModelResponse]:
            yield told(1, 1)
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

    async with serving(Waiting()) as channels:
        async with aclosing(RegistryClient(channels).watch_alias("m", "prod")) as states:
            assert (await anext(states)) is not None
        async with asyncio.timeout(WAIT_S):
            await ended.wait()
