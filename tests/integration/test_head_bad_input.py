"""What is wrong with a frame is said with a reason, in a call and in a stream alike, and the next good frame is answered."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from splitmesh.api.inference.v1 import inference_pb2 as pb
from splitmesh.api.inference.v1 import inference_pb2_grpc
from splitmesh.api.tensor.v1 import tensor_pb2
from splitmesh.client import MeshError, Reason
from splitmesh.kernel.channels import mesh_errors, open_channel
from splitmesh.kernel.tensors import tensor_to_message
from tests.support.models import EASY, EASY_LABEL, SIDE, picture
from tests.support.wire import WAIT_S, Raw, bomb_png, frame_error, image_frame, infer_stream
from tests.support.worlds import World, world

pytestmark = pytest.mark.asyncio(loop_scope="module")

MAX_FRAME_BYTES = 64 * 1024
TRANSPORT_BYTES = 4 << 20
"""Above the head's limit and the transport's headroom together."""


def tensor(array: Any, **changes: Any) -> pb.InferRequest:
    message = tensor_to_message("", np.asarray(array))
    for name, value in changes.items():
        if name == "shape":
            message.spec.shape[:] = value
        else:
            setattr(message if name == "data" else message.spec, name, value)
    return pb.InferRequest(tensor=message)


GOOD = np.full((1, 1, SIDE, SIDE), EASY, dtype=np.float32)
BAD: dict[str, tuple[pb.InferRequest, Reason]] = {
    "not a picture": (pb.InferRequest(image=b"this is text"), Reason.IMAGE_UNDECODABLE),
    "an empty picture": (pb.InferRequest(image=b""), Reason.IMAGE_UNDECODABLE),
    "a small file that declares a huge picture": (
        pb.InferRequest(image=bomb_png(50_000, 50_000)),
        Reason.IMAGE_TOO_LARGE,
    ),
    "a file that declares more pixels than allowed": (
        pb.InferRequest(image=bomb_png(4097, 4096)),
        Reason.IMAGE_TOO_LARGE,
    ),
    "a declared size with no pixels behind it": (pb.InferRequest(image=bomb_png(64, 64)), Reason.IMAGE_UNDECODABLE),
    "a truncated JPEG": (
        pb.InferRequest(image=picture(EASY, side=200, kind="JPEG")[:-200]),
        Reason.IMAGE_UNDECODABLE,
    ),
    "a format that no camera sends": (pb.InferRequest(image=picture(EASY, kind="GIF")), Reason.IMAGE_UNDECODABLE),
    "a tensor of the wrong shape": (tensor(np.zeros((1, 1, 8, 8), np.float32)), Reason.TENSOR_SHAPE_MISMATCH),
    "a tensor of the wrong rank": (tensor(np.zeros((1, SIDE, SIDE), np.float32)), Reason.TENSOR_SHAPE_MISMATCH),
    "two samples in one tensor": (tensor(np.zeros((2, 1, SIDE, SIDE), np.float32)), Reason.TENSOR_SHAPE_MISMATCH),
    "a tensor of the wrong type": (tensor(GOOD.astype(np.float64)), Reason.TENSOR_DTYPE_MISMATCH),
    "a tensor of no type": (tensor(GOOD, data_type=0), Reason.TENSOR_DTYPE_MISMATCH),
    "a tensor of a type from the future": (tensor(GOOD, data_type=99), Reason.TENSOR_DTYPE_MISMATCH),
    "fewer bytes than the shape says": (tensor(GOOD, data=GOOD.tobytes()[:-4]), Reason.TENSOR_SIZE_MISMATCH),
    "more bytes than the shape says": (tensor(GOOD, data=GOOD.tobytes() + b"0"), Reason.TENSOR_SIZE_MISMATCH),
    "a negative dimension": (tensor(GOOD, shape=[1, 1, -SIDE, -SIDE]), Reason.TENSOR_SHAPE_MISMATCH),
    "a dimension of zero": (tensor(GOOD, shape=[1, 0, SIDE, SIDE], data=b""), Reason.TENSOR_SHAPE_MISMATCH),
    "dimensions that overflow": (tensor(GOOD, shape=[1 << 62, 1 << 62, 4, 4]), Reason.TENSOR_SHAPE_MISMATCH),
    "dimensions that ask for memory": (tensor(GOOD, shape=[1, 1, 1 << 20, 1 << 20]), Reason.FRAME_TOO_LARGE),
    "NaN": (tensor(np.where(GOOD > 1, GOOD, np.nan).astype(np.float32)), Reason.TENSOR_NOT_FINITE),
    "infinity": (tensor(np.full_like(GOOD, np.inf)), Reason.TENSOR_NOT_FINITE),
    "a tensor that is not set": (pb.InferRequest(tensor=tensor_pb2.Tensor()), Reason.TENSOR_DTYPE_MISMATCH),
    "nothing at all": (pb.InferRequest(), Reason.FIELD_INVALID),
    "a model that is not here": (pb.InferRequest(model="other", image=picture(EASY)), Reason.MODEL_NOT_FOUND),
    "a camera's name too long": (pb.InferRequest(camera_id="c" * 129, image=picture(EASY)), Reason.FIELD_INVALID),
    "a frame just above the limit": (pb.InferRequest(image=b"x" * (MAX_FRAME_BYTES + 1)), Reason.FRAME_TOO_LARGE),
}
CASES = [pytest.param(request, reason, id=name) for name, (request, reason) in BAD.items()]


@dataclass
class Head:
    world: World
    stub: Any

    @property
    def address(self) -> str:
        return self.world.addresses["head"]

    async def infer(self, request: pb.InferRequest) -> pb.InferResponse:
        async with mesh_errors():
            return await self.stub.Infer(request, timeout=WAIT_S)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def head(tmp_path_factory: pytest.TempPathFactory, registered: Path) -> AsyncIterator[Head]:
    """Without a tail; its clients' limits are far above its own."""
    async with world(tmp_path_factory.mktemp("head"), registered) as made:
        await made.start("head", max_frame_bytes=MAX_FRAME_BYTES, switch_wait_s=0)
        await made.ready_mesh()
        async with open_channel(made.addresses["head"], max_frame_bytes=64 << 20) as channel:
            yield Head(made, inference_pb2_grpc.InferenceServiceStub(channel))


async def refused(head: Head, request: pb.InferRequest) -> MeshError:
    with pytest.raises(MeshError) as caught:
        await head.infer(request)
    return caught.value


@pytest.mark.parametrize(("request_", "reason"), CASES)
async def test_a_call_with_a_bad_frame_gets_its_reason_and_the_next_an_answer(
    head: Head, request_: pb.InferRequest, reason: Reason
) -> None:
    error = await refused(head, request_)
    assert error.reason is reason
    assert len(error.message) < 300
    assert (await head.infer(pb.InferRequest(image=picture(EASY)))).labels[0].name == EASY_LABEL


async def test_a_stream_answers_each_bad_frame_with_its_reason_and_goes_on(head: Head) -> None:
    async with infer_stream(head.address) as raw:
        for frame_id, (request, reason) in enumerate(BAD.values()):
            numbered = pb.InferRequest(frame_id=frame_id)
            numbered.MergeFrom(request)
            await raw.write(pb.StreamInferRequest(frame=numbered))
            found, error = frame_error(await raw.read())
            assert (found, error.reason) == (frame_id, reason)
        await raw.write(image_frame(picture(EASY), 1000))
        assert (await raw.read()).result.frame_id == 1000
        await raw.write(pb.StreamInferRequest())
        assert frame_error(await raw.read())[1].reason is Reason.FIELD_INVALID


async def test_a_good_tensor_is_answered_like_the_picture(head: Head) -> None:
    array = np.full((1, 1, SIDE, SIDE), round(EASY * 255) / 255, dtype=np.float32)
    by_tensor = await head.infer(tensor(array))
    by_picture = await head.infer(pb.InferRequest(image=picture(EASY)))
    assert [one.score for one in by_tensor.labels] == pytest.approx([one.score for one in by_picture.labels])


async def test_every_format_of_the_list_is_answered(head: Head) -> None:
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF"):
        answer = await head.infer(pb.InferRequest(image=picture(EASY, kind=kind)))
        assert answer.labels[0].name == EASY_LABEL, kind


async def test_a_call_far_above_the_transports_limit_gets_a_reason(head: Head) -> None:
    error = await refused(head, pb.InferRequest(image=b"x" * TRANSPORT_BYTES))
    assert error.reason is Reason.FRAME_TOO_LARGE
    await head.infer(pb.InferRequest(image=picture(EASY)))


async def test_a_stream_with_a_frame_far_above_the_transports_limit_ends_with_a_reason(head: Head) -> None:
    async with infer_stream(head.address, max_frame_bytes=64 << 20) as raw:
        await raw.write(image_frame(b"x" * TRANSPORT_BYTES))
        with pytest.raises(MeshError) as caught:
            await raw.read()
        assert caught.value.reason is Reason.FRAME_TOO_LARGE
    await head.infer(pb.InferRequest(image=picture(EASY)))


async def test_bytes_that_are_no_message_end_the_call_and_not_the_head(head: Head) -> None:
    async with open_channel(head.address) as channel:
        call = channel.unary_unary("/splitmesh.api.inference.v1.InferenceService/Infer")
        with pytest.raises(MeshError):
            async with mesh_errors():
                await call(b"\xff\xff\xff\xff", timeout=WAIT_S)
        raw = Raw(channel.stream_stream("/splitmesh.api.inference.v1.InferenceService/StreamInfer")())
        assert await raw.read()
        await raw.write(b"\xff\xff\xff\xff")
        with pytest.raises(MeshError) as caught:
            await raw.read()
        assert caught.value.reason is Reason.PROTOCOL_VIOLATION
    await head.infer(pb.InferRequest(image=picture(EASY)))


async def test_an_unknown_method_is_unimplemented(head: Head) -> None:
    async with open_channel(head.address) as channel:
        with pytest.raises(MeshError) as caught:
            async with mesh_errors():
                await channel.unary_unary("/splitmesh.api.inference.v1.InferenceService/Guess")(b"", timeout=WAIT_S)
    assert caught.value.reason is Reason.UNIMPLEMENTED
