"""Several heads: the nearest that is well is used, another one takes over when it dies or drains, and no frame is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from splitmesh.api.inference.v1 import inference_pb2 as pb
from splitmesh.client import Answer, Mesh, MeshError, Reason, heads
from splitmesh.client.heads import Heads
from splitmesh.kernel.discovery import Instance
from splitmesh.kernel.discovery_static import StaticDiscovery
from splitmesh.kernel.wire import Lifted
from tests.support.fake_head import FakeHead, answer_to, served
from tests.support.streaming import streamed

WAIT_S = 20.0
pytestmark = pytest.mark.timeout(2 * WAIT_S)
FAR_S = 0.1


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "ASK_S", 0.2)
    monkeypatch.setattr(heads, "ANSWER_S", 5.0)
    monkeypatch.setattr(heads, "STEADY_S", 0.3)


@pytest.fixture
async def near() -> AsyncIterator[FakeHead]:
    async with served(FakeHead()) as started:
        yield started


@pytest.fixture
async def far() -> AsyncIterator[FakeHead]:
    async with served(FakeHead(distance_s=FAR_S)) as started:
        yield started


def both(*heads: FakeHead) -> str:
    return ", ".join(head.address for head in heads)


async def until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not reached():  # noqa: ASYNC110  the heads of these tests tell nobody
            await asyncio.sleep(0.01)


class Camera:
    """Takes a frame every few milliseconds until told to stop."""

    def __init__(self) -> None:
        self.taken = 0
        self.stopped = False

    async def frames(self) -> AsyncIterator[bytes]:
        while not self.stopped:
            self.taken += 1
            yield f"frame {self.taken - 1}".encode()
            await asyncio.sleep(0.005)


def seen(head: FakeHead) -> int:
    return len({one.frame_id for one in head.seen})


def assert_answered_in_order(outcomes: list[object], camera: Camera) -> None:
    assert [one.label.name for one in outcomes if isinstance(one, Answer)] == [
        f"frame {number}" for number in range(camera.taken)
    ]
    assert len(outcomes) == camera.taken


async def test_the_nearest_head_is_used_and_kept_by_every_call_and_stream(near: FakeHead, far: FakeHead) -> None:
    async with Mesh(both(far, near)) as mesh:
        await mesh.infer(b"the first answers once somebody is known")
        for number in range(5):
            await mesh.infer(str(number).encode())
            await streamed(mesh, [b"a", b"b"])
    assert (len(near.seen), len(far.seen)) == (16, 0)


@pytest.mark.parametrize("leaves", ["dies", "drains", "refuses"])
async def test_another_head_takes_over_in_mid_stream_and_no_frame_is_lost(leaves: str, far: FakeHead) -> None:
    async def refuse_later(request: pb.InferRequest) -> pb.InferResponse:
        if leaves == "refuses" and seen(near) > 20:
            raise MeshError(Reason.NOT_READY, "this node is shutting down", retry_after_s=30.0)
        await asyncio.sleep(0.05)  # so that some are always under way
        return answer_to(request)

    near, camera = FakeHead(answer=refuse_later), Camera()
    async with asyncio.timeout(WAIT_S), served(near) as started, Mesh(both(far, started)) as mesh:
        await mesh.infer(b"somebody is known")
        streaming = asyncio.create_task(streamed(mesh, camera.frames(), order="in-order"))
        await until(lambda: seen(near) > 20)
        if leaves == "drains":
            await near.serving(False)
        elif leaves == "dies":
            await near.stop()
        await until(lambda: seen(far) > 20)
        camera.stopped = True
        assert_answered_in_order(await streaming, camera)
    if leaves == "drains":
        assert seen(near) + seen(far) == camera.taken  # what the first had taken it answered


async def test_frames_go_back_to_the_nearer_head_once_it_is_steady(far: FakeHead) -> None:
    near, camera = FakeHead(), Camera()
    async with asyncio.timeout(WAIT_S), served(near), Mesh(both(far, near)) as mesh:
        await near.serving(False)
        await mesh.infer(b"somebody is known")
        streaming = asyncio.create_task(streamed(mesh, camera.frames(), order="in-order"))
        await until(lambda: seen(far) > 20)
        await near.serving()
        await until(lambda: seen(near) > 20)
        camera.stopped = True
        assert_answered_in_order(await streaming, camera)
        assert seen(near) + seen(far) == camera.taken


async def test_a_head_that_is_as_near_draws_no_frames_away(far: FakeHead) -> None:
    camera, other = Camera(), FakeHead(distance_s=FAR_S)
    async with asyncio.timeout(WAIT_S), served(other), Mesh(both(far, other)) as mesh:
        streaming = asyncio.create_task(streamed(mesh, camera.frames()))
        await until(lambda: min(far.asked, other.asked) > 5)
        camera.stopped = True
        await streaming
    assert 0 in (seen(far), seen(other))


async def test_a_call_goes_to_another_head_at_once(near: FakeHead, far: FakeHead) -> None:
    async def shutting_down(request: pb.InferRequest) -> pb.InferResponse:
        raise MeshError(Reason.NOT_READY, "this node is shutting down", retry_after_s=30.0)

    async with Mesh(both(near, far), deadline_ms=10_000) as mesh:
        await mesh.infer(b"somebody is known")
        await until(lambda: far.asked > 0)
        near.answer = shutting_down
        near.seen.clear()
        far.seen.clear()
        assert (await mesh.infer(b"x")).label.name == "x"
    assert (len(near.seen), len(far.seen)) == (1, 1)


async def test_a_call_that_a_full_head_refuses_goes_to_the_other_at_once(near: FakeHead, far: FakeHead) -> None:
    async def full(request: pb.InferRequest) -> pb.InferResponse:
        raise MeshError(Reason.QUEUE_FULL, "full", retry_after_s=30.0)

    async with Mesh(both(near, far), deadline_ms=10_000) as mesh:
        await mesh.infer(b"somebody is known")
        await until(lambda: far.asked > 1)
        near.answer = full
        assert (await mesh.infer(b"x")).label.name == "x"
        with pytest.raises(MeshError) as caught:
            await mesh.infer(b"x", retries=-1)
    assert caught.value.reason is Reason.FIELD_INVALID


async def test_one_head_is_waited_for_only_while_that_fits_the_deadline(near: FakeHead) -> None:
    async def full(request: pb.InferRequest) -> pb.InferResponse:
        raise MeshError(Reason.QUEUE_FULL, "full", retry_after_s=30.0)

    near.answer = full
    async with Mesh(near.address) as mesh:
        with pytest.raises(MeshError) as caught:
            async with asyncio.timeout(WAIT_S / 2):
                await mesh.infer(b"x", deadline_ms=10_000)
    assert (caught.value.reason, len(near.seen)) == (Reason.QUEUE_FULL, 1)


async def test_a_call_says_how_every_head_is_when_none_is_well(near: FakeHead, far: FakeHead) -> None:
    await near.serving(False)
    await far.stop()
    async with Mesh(both(near, far)) as mesh:
        with pytest.raises(MeshError) as caught:
            await mesh.infer(b"x", deadline_ms=1000)
    assert caught.value.reason is Reason.SERVICE_UNAVAILABLE
    assert f"{near.address} is NOT_SERVING" in caught.value.message
    assert f"{far.address} does not answer" in caught.value.message


@pytest.mark.parametrize("wrong", ["", "mec-1", "mec-1:7010,", "mec-1:7010,mec-1:7010", "mec-1:0"])
def test_a_wrong_address_is_refused_before_anything_is_called(wrong: str) -> None:
    with pytest.raises(MeshError) as caught:
        Mesh(wrong)
    assert (caught.value.reason, caught.value.fields[0][0]) == (Reason.FIELD_INVALID, "heads")


def test_heads_are_listed_or_found_and_not_both() -> None:
    with pytest.raises(MeshError, match="not both"):
        Mesh("mec-1:7010", consul_address="127.0.0.1:8500")
    with pytest.raises(MeshError) as caught:
        Mesh(consul_address="nowhere")
    assert caught.value.fields[0][0] == "consul_address"


async def test_the_only_head_that_is_left_is_used_in_the_place_of_one_that_is_gone(
    near: FakeHead, far: FakeHead
) -> None:
    discovery = StaticDiscovery()
    found = Heads(discovery, "head", max_frame_bytes=1 << 20)
    first = await discovery.register(Instance("head", "a", near.address))
    head = await found.pick(WAIT_S)
    with found.use(head):
        await far.stop()  # never well
        await discovery.register(Instance("head", "b", far.address))
        await first.deregister()
        await until(lambda: head.gone)
        rival = found.rival(head)
        assert rival is not None
        assert rival.address == far.address
    await found.close()


async def test_a_head_in_use_need_not_prove_itself_to_a_newcomer(near: FakeHead, far: FakeHead) -> None:
    discovery = StaticDiscovery()
    found = Heads(discovery, "head", max_frame_bytes=1 << 20)
    await discovery.register(Instance("head", "far", far.address))
    head = await found.pick(WAIT_S)
    with found.use(head):
        await discovery.register(Instance("head", "near", near.address))
        await until(lambda: near.asked > 0)
        await asyncio.sleep(FAR_S / 2)  # the nearer one has answered, this one not
        assert found.rival(head) is None
        await until(lambda: found.rival(head) is not None)
    await found.close()


async def test_a_discovery_that_fails_is_told_and_tried_again(near: FakeHead) -> None:
    class Failing(StaticDiscovery):
        broken = True

        def watch(self, service: str) -> AsyncIterator[tuple[Instance, ...]]:
            if self.broken:
                raise MeshError(Reason.FIELD_INVALID, "as the test wants")
            return super().watch(service)

    discovery = Failing()
    await discovery.register(Instance("head", "a", near.address))
    found = Heads(discovery, "head", max_frame_bytes=1 << 20)
    with pytest.raises(MeshError, match="as the test wants"):
        await found.pick(WAIT_S)
    discovery.broken = False
    assert (await found.pick(WAIT_S)).address == near.address
    await found.close()


async def test_a_head_that_discovery_no_longer_knows_is_left(near: FakeHead, far: FakeHead) -> None:
    discovery = StaticDiscovery()
    found = Heads(discovery, "head", max_frame_bytes=1 << 20)
    first = await discovery.register(Instance("head", "a", near.address))
    head = await found.pick(WAIT_S)
    assert (head.address, found.rival(head)) == (near.address, None)
    with found.use(head):
        await discovery.register(Instance("head", "b", far.address))
        await first.deregister()
        async with asyncio.timeout(WAIT_S):
            while (await found.pick()).address != far.address:
                await found.changed()
        await until(lambda: head.gone)
        await head.infer(Lifted(pb.InferRequest(image=b""), (b"still open",)), timeout=WAIT_S)
    await found.close()
    with pytest.raises(MeshError, match="none is known as 'head'"):
        await Heads(StaticDiscovery(), "head", max_frame_bytes=1 << 20).pick(0.01)
