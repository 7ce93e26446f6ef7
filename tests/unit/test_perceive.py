"""From a request to what the head sees: the model's own declaration decides what is taken."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import numpy as np
import onnx
import pytest

from edge.head.active import ActiveModel, warm_up
from edge.head.frame import MAX_CAMERA_ID, FrameRequest, Picture
from edge.head.messages import frame_from_message
from edge.head.perceive import perceive
from splitmesh.api.inference.v1 import inference_pb2 as pb
from splitmesh.api.tensor.v1.tensor_pb2 import Tensor, TensorList
from splitmesh.client.registry import VersionInfo
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.tensors import tensor_to_message
from splitmesh.model.artifacts import split_bytes
from splitmesh.model.manifest import HEAD, MANIFEST, Manifest
from splitmesh.runtime import open_session
from splitmesh.tensor import TensorLimits
from tests.support.models import CUT, EXIT_OUTPUT, HARD, exit_version, features, picture
from tests.unit.onnx_nets import late_input, siamese

LIMITS = TensorLimits()


@pytest.fixture(scope="module")
def active() -> ActiveModel:
    artifacts = exit_version()
    info = VersionInfo("parts", 1, 0, {}, "push", "", (), datetime(2026, 1, 1, tzinfo=UTC))
    session = open_session(artifacts[HEAD])
    warm_up(session)
    return ActiveModel(info, Manifest.from_json(artifacts[MANIFEST]), session, None)


def one_tensor(tensor: Tensor) -> FrameRequest:
    return frame_from_message(pb.InferRequest(tensor=tensor), [tensor.data])


def test_a_picture_becomes_the_cuts_tensors_and_the_exits_row(active: ActiveModel) -> None:
    seen = perceive(active, FrameRequest(Picture(picture(HARD))), max_pixels=1000, limits=LIMITS, codec="zstd")
    assert seen.outputs.keys() == {CUT, EXIT_OUTPUT}
    assert seen.outputs[CUT] == pytest.approx(features(HARD))
    assert seen.started_ns <= seen.decoded_ns <= seen.ended_ns


def test_a_picture_of_another_size_is_resized(active: ActiveModel) -> None:
    seen = perceive(
        active, FrameRequest(Picture(picture(HARD, side=100))), max_pixels=10_000, limits=LIMITS, codec="zstd"
    )
    assert seen.outputs[CUT] == pytest.approx(features(HARD))


def test_a_picture_above_the_limit_of_pixels_is_refused(active: ActiveModel) -> None:
    with pytest.raises(MeshError) as caught:
        perceive(active, FrameRequest(Picture(picture(HARD, side=100))), max_pixels=9_999, limits=LIMITS, codec="zstd")
    assert caught.value.reason is Reason.IMAGE_TOO_LARGE


def test_a_model_that_declares_no_preprocessing_takes_tensors_only(active: ActiveModel) -> None:
    bare = ActiveModel(active.info, active.manifest.model_copy(update={"preprocess": None}), active.session, None)
    with pytest.raises(MeshError) as caught:
        perceive(bare, FrameRequest(Picture(picture(HARD))), max_pixels=1000, limits=LIMITS, codec="zstd")
    assert caught.value.fields[0][0] == "image"
    tensor = tensor_to_message("image", np.full((1, 1, 16, 16), 0.5, np.float32))
    seen = perceive(bare, one_tensor(tensor), max_pixels=1, limits=LIMITS, codec="zstd")
    assert seen.outputs[CUT].max() == 0.5


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_tensor_that_is_not_finite_never_reaches_the_model(active: ActiveModel, value: float) -> None:
    bad = np.full((1, 1, 16, 16), 0.5, np.float32)
    bad[0, 0, 3, 3] = value
    request = one_tensor(tensor_to_message("image", bad))
    with pytest.raises(MeshError) as caught:
        perceive(active, request, max_pixels=1, limits=LIMITS, codec="zstd")
    assert caught.value.reason is Reason.TENSOR_NOT_FINITE


def test_the_size_of_the_input_is_checked_before_anything_is_decoded() -> None:
    assert FrameRequest(Picture(b"x" * 10)).check(10) == 10
    with pytest.raises(MeshError) as caught:
        FrameRequest(Picture(b"x" * 11)).check(10)
    assert caught.value.reason is Reason.FRAME_TOO_LARGE
    assert caught.value.metadata == {"size_bytes": "11", "max_frame_bytes": "10"}


def test_a_cameras_name_may_be_as_long_as_the_contract_says() -> None:
    FrameRequest(Picture(b"x"), camera_id="c" * MAX_CAMERA_ID).check(10)
    with pytest.raises(MeshError) as caught:
        FrameRequest(Picture(b"x"), camera_id="c" * (MAX_CAMERA_ID + 1)).check(10)
    assert caught.value.fields[0][0] == "camera_id"


async def test_a_version_in_use_is_closed_when_its_last_frame_is_answered(active: ActiveModel) -> None:
    session = open_session(exit_version()[HEAD])
    version = ActiveModel(active.info, active.manifest, session, None)
    with version.use():
        retiring = asyncio.create_task(version.retire())
        await asyncio.sleep(0)
        assert not retiring.done()
        perceive(version, FrameRequest(Picture(picture(HARD))), max_pixels=1000, limits=LIMITS, codec="zstd")
    async with asyncio.timeout(5):
        await retiring
    with pytest.raises(MeshError):
        perceive(version, FrameRequest(Picture(picture(HARD))), max_pixels=1000, limits=LIMITS, codec="zstd")


# --- several inputs --------------------------------------------------------------------------------------------------

PAIR = {"left": np.ones((1, 4), np.float32), "right": np.full((1, 4), 0.5, np.float32)}


@pytest.fixture(scope="module")
def pair() -> ActiveModel:
    manifest, artifacts = split_bytes(siamese().SerializeToString(), ["left_code", "right"])
    info = VersionInfo("pair", 1, 0, {}, "push", "", (), datetime(2026, 1, 1, tzinfo=UTC))
    session = open_session(artifacts[HEAD])
    warm_up(session)
    return ActiveModel(info, manifest, session, None)


def named(*tensors: tuple[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]) -> FrameRequest:
    messages = [tensor_to_message(name, array) for name, array in tensors]
    request = pb.InferRequest(tensors=TensorList(tensors=messages))
    return frame_from_message(request, [message.data for message in messages])


def test_inputs_are_taken_by_name_in_any_order_and_an_input_in_the_cut_is_packed(pair: ActiveModel) -> None:
    request = named(*reversed(PAIR.items()))
    seen = perceive(pair, request, max_pixels=1, limits=LIMITS, codec="identity")
    np.testing.assert_array_equal(seen.outputs["right"], PAIR["right"])
    assert seen.packed is not None
    assert [spec.name for spec in seen.packed.header.tensors] == ["left_code", "right"]


@pytest.mark.parametrize(
    ("request_", "field", "words"),
    [
        (named(("left", PAIR["left"])), "tensors", "'right' of 'pair' is missing"),
        (named(*PAIR.items(), ("third", PAIR["left"])), "tensors", "no input 'third'"),
        (named(*PAIR.items(), ("left", PAIR["left"])), "tensors", "twice"),
        (named(), "tensors", "'left', 'right'"),
        (one_tensor(tensor_to_message("left", PAIR["left"])), "tensor", "send tensors"),
        (FrameRequest(Picture(b"x")), "image", "send tensors"),
    ],
)
def test_a_wrong_set_of_inputs_is_refused_with_the_input_at_fault(
    pair: ActiveModel, request_: FrameRequest, field: str, words: str
) -> None:
    with pytest.raises(MeshError) as caught:
        perceive(pair, request_, max_pixels=1, limits=LIMITS, codec="zstd")
    assert caught.value.reason is Reason.FIELD_INVALID
    assert caught.value.fields[0][0] == field
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("right", "reason"),
    [
        (np.ones((1, 5), np.float32), Reason.TENSOR_SHAPE_MISMATCH),
        (np.ones((2, 4), np.float32), Reason.TENSOR_SHAPE_MISMATCH),
        (np.ones((1, 4), np.float64), Reason.TENSOR_DTYPE_MISMATCH),
        (np.full((1, 4), np.nan, np.float32), Reason.TENSOR_NOT_FINITE),
    ],
)
def test_every_one_of_several_inputs_is_checked(
    pair: ActiveModel, right: np.ndarray[tuple[int, ...], np.dtype[np.float32]], reason: Reason
) -> None:
    with pytest.raises(MeshError) as caught:
        perceive(pair, named(("left", PAIR["left"]), ("right", right)), max_pixels=1, limits=LIMITS, codec="zstd")
    assert caught.value.reason is reason


def test_the_size_of_several_inputs_is_their_sum() -> None:
    assert named(*PAIR.items()).check(32) == 32
    with pytest.raises(MeshError) as caught:
        named(*PAIR.items()).check(31)
    assert caught.value.reason is Reason.FRAME_TOO_LARGE


def test_a_model_of_one_input_takes_it_by_name_too(active: ActiveModel) -> None:
    request = named(("image", np.full((1, 1, 16, 16), 0.5, np.float32)))
    seen = perceive(active, request, max_pixels=1, limits=LIMITS, codec="zstd")
    assert seen.outputs[CUT].max() == 0.5


@pytest.mark.parametrize("net", [siamese(batch=4), late_input()])
def test_models_of_fixed_batch_and_with_scalar_inputs_are_warmed_up(net: onnx.ModelProto) -> None:
    session = open_session(net.SerializeToString())
    warm_up(session)
    session.close()
