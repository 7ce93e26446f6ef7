"""Tensors from outside: what is accepted comes back bit for bit, everything else has its reason."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from splitmesh.api.tensor.v1 import tensor_pb2
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.tensors import CODEC_VALUES, DATA_TYPES, tensor_from_message, tensor_to_message
from splitmesh.tensor import CODECS, DTYPES, MAX_RANK, TensorLimits, TensorSpec, as_bytes, from_bytes, require_finite
from splitmesh.tensor.codecs import OF_A_VERSION
from splitmesh.tensor.spec import ANSWER_LIMITS, Array, spec_of, total_bytes

any_array = st.sampled_from(sorted(DTYPES)).flatmap(
    lambda name: arrays.arrays(DTYPES[name], arrays.array_shapes(min_dims=0, max_dims=MAX_RANK, max_side=4))
)
SMALL = TensorLimits(max_dim=100, max_size_bytes=4096)


def reason_of(spec: TensorSpec, limits: TensorLimits = SMALL) -> Reason:
    with pytest.raises(MeshError) as caught:
        spec.validate(limits)
    return caught.value.reason


@given(any_array)
def test_an_array_comes_back_from_its_bytes_bit_for_bit(array: Array) -> None:
    spec = spec_of("t", array)
    back = from_bytes(spec, as_bytes(array))
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.tobytes() == array.tobytes()
    assert not back.flags.writeable


@given(any_array)
def test_an_array_comes_back_from_its_message_bit_for_bit(array: Array) -> None:
    name, back = tensor_from_message(tensor_pb2.Tensor.FromString(tensor_to_message("t", array).SerializeToString()))
    assert (name, back.tobytes(), back.shape) == ("t", array.tobytes(), array.shape)


def test_bytes_are_little_endian_and_row_major_whatever_the_array_is() -> None:
    array = np.arange(6, dtype=">i4").reshape(2, 3)
    assert as_bytes(np.asfortranarray(array)).tobytes() == b"".join(bytes([i, 0, 0, 0]) for i in range(6))


def test_the_tables_of_types_and_codecs_are_those_of_the_contract() -> None:
    types = {name for name in tensor_pb2.DataType.keys() if not name.endswith("_UNSPECIFIED")}  # noqa: SIM118
    assert types == {f"DATA_TYPE_{name.upper()}" for name in DTYPES}
    assert DATA_TYPES.keys() == DTYPES.keys()
    codecs = {name for name in tensor_pb2.Codec.keys() if not name.endswith("_UNSPECIFIED")}  # noqa: SIM118
    known = CODECS.keys() | OF_A_VERSION
    assert codecs == {f"CODEC_{name.upper()}" for name in known}
    assert {tensor_pb2.Codec.Name(value): name for name, value in CODEC_VALUES.items()} == {
        f"CODEC_{name.upper()}": name for name in known
    }


def test_a_tensor_without_a_row_is_taken_among_answers_only() -> None:
    message = tensor_to_message("boxes", np.zeros((0, 4), np.float32))
    _, array = tensor_from_message(message, ANSWER_LIMITS)
    assert (array.shape, array.dtype) == ((0, 4), np.float32)
    with pytest.raises(MeshError) as caught:
        tensor_from_message(message)
    assert caught.value.reason is Reason.TENSOR_SHAPE_MISMATCH


@pytest.mark.parametrize("dtype", ["complex64", "object", "U3", "", "float128", ">f4"])
def test_a_type_outside_the_list_is_refused(dtype: str) -> None:
    assert reason_of(TensorSpec("t", dtype, (1,))) is Reason.TENSOR_DTYPE_MISMATCH


def test_an_array_of_a_type_outside_the_list_is_not_sent() -> None:
    with pytest.raises(MeshError) as caught:
        as_bytes(np.zeros(1, dtype=np.complex64))
    assert caught.value.reason is Reason.TENSOR_DTYPE_MISMATCH


@pytest.mark.parametrize("shape", [(0,), (1, -1), (-(2**63),), (101,), (2**62, 2**62), (1,) * 9])
def test_a_shape_out_of_range_is_refused(shape: tuple[int, ...]) -> None:
    assert reason_of(TensorSpec("t", "float32", shape)) is Reason.TENSOR_SHAPE_MISMATCH


def test_a_tensor_is_refused_by_its_size_and_just_below_the_limit_accepted() -> None:
    assert reason_of(TensorSpec("t", "uint8", (100, 41))) is Reason.FRAME_TOO_LARGE
    assert reason_of(TensorSpec("t", "float32", (100, 100, 100, 100, 100, 100, 100, 100))) is Reason.FRAME_TOO_LARGE
    TensorSpec("t", "uint8", (64, 64)).validate(SMALL)
    assert total_bytes([TensorSpec("t", "uint8", (64, 64)), TensorSpec("u", "int64", (2,))]) == 4096 + 16


@given(st.integers(0, 64).filter(lambda size: size != 24))
def test_bytes_that_do_not_fill_the_shape_are_refused(size: int) -> None:
    with pytest.raises(MeshError) as caught:
        from_bytes(TensorSpec("t", "float32", (2, 3)), b"x" * size)
    assert caught.value.reason is Reason.TENSOR_SIZE_MISMATCH


@pytest.mark.parametrize(
    ("actual", "reason"),
    [
        (TensorSpec("t", "float64", (7, 3)), Reason.TENSOR_DTYPE_MISMATCH),
        (TensorSpec("t", "float32", (7, 4)), Reason.TENSOR_SHAPE_MISMATCH),
        (TensorSpec("t", "float32", (7,)), Reason.TENSOR_SHAPE_MISMATCH),
        (TensorSpec("t", "float32", (7, 3, 1)), Reason.TENSOR_SHAPE_MISMATCH),
    ],
)
def test_what_does_not_match_a_specification_is_refused(actual: TensorSpec, reason: Reason) -> None:
    wanted = TensorSpec("t", "float32", (-1, 3))
    wanted.require_match(TensorSpec("other", "float32", (7, 3)))
    with pytest.raises(MeshError) as caught:
        wanted.require_match(actual)
    assert caught.value.reason is reason


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_what_is_not_finite_is_refused(value: float, dtype: str) -> None:
    array = np.zeros((2, 3), dtype=dtype)
    require_finite("t", array)
    array[1, 2] = value
    with pytest.raises(MeshError) as caught:
        require_finite("t", array)
    assert caught.value.reason is Reason.TENSOR_NOT_FINITE
