"""An ONNX graph executed by torch gives what onnxruntime gives, and gradients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from benchmarks.architectures import build
from splitmesh.compress.train.graph import to_torch
from splitmesh.errors import MeshError, Reason
from splitmesh.runtime import open_session
from tests.unit import onnx_nets
from tests.unit.onnx_nets import data, ints, model, node, value, weight

TOLERANCE = 2e-5
"""Of the largest magnitude."""


def both(net: onnx.ModelProto, feeds: dict[str, np.ndarray] | None = None) -> None:
    """Torch and onnxruntime on the same random inputs."""
    session = open_session(data(net))
    rng = np.random.default_rng(3)
    if feeds is None:
        feeds = {
            spec.name: rng.normal(0, 1, [2 if dim == -1 else dim for dim in spec.shape]).astype(np.float32)
            for spec in session.inputs
        }
    wanted = session.run(feeds)
    module = to_torch(net)
    with torch.no_grad():
        got = module(*(torch.from_numpy(feeds[name]) for name in module.input_names))
    for name, value_ in zip(module.output_names, got, strict=True):
        want = wanted[name]
        assert value_.shape == want.shape
        size = float(np.abs(want).max()) or 1.0
        assert float(np.abs(value_.numpy() - want).max()) <= TOLERANCE * size, name


SMALL: dict[str, Callable[[], onnx.ModelProto]] = {
    "residual": onnx_nets.residual,
    "residual of opset 11": lambda: onnx_nets.residual(opset=11),
    "dense": onnx_nets.dense,
    "two branches": onnx_nets.two_branches,
    "a shape taken early": onnx_nets.early_shape,
    "an early output": onnx_nets.early_output,
    "quantised": onnx_nets.quantised,
    "siamese": onnx_nets.siamese,
}


@pytest.mark.parametrize("name", SMALL)
def test_a_small_net_answers_as_in_onnxruntime(name: str) -> None:
    both(SMALL[name]())


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "mobilenet_v2",
        "mobilenet_v3",
        "efficientnet_b0",
        "convnext_tiny",
        "vit_tiny",
        "unet",
        "yolo",
        "deeplab",
    ],
)
def test_a_vision_net_answers_as_in_onnxruntime_and_has_gradients_down_to_its_input(name: str) -> None:
    net = onnx.load_model_from_string(build(name, width=0.25, side=64))
    both(net)
    module = to_torch(net)
    picture = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    sum(output.float().square().sum() for output in module(picture)).backward()
    assert picture.grad is not None
    assert bool(torch.isfinite(picture.grad).all())
    assert float(picture.grad.abs().sum()) > 0


def single(
    op: str, shape: list[int], extra: list[onnx.TensorProto] | None = None, opset: int = 18, **attributes: object
):
    """A net of one operator on ``x``, further inputs from ``extra``."""
    weights = extra or []
    names = " ".join(["x", *(entry.name for entry in weights)])
    return model([node(op, names, "y", **attributes)], [value("x", shape)], [value("y", None)], weights, opset=opset)


def scalar(name: str, number: float) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(number, dtype=np.float32), name)


def floats(name: str, *numbers: float) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(numbers, dtype=np.float32), name)


PICTURE = [2, 4, 9, 7]
SINGLE: dict[str, onnx.ModelProto] = {
    "convolution padded unevenly": single(
        "Conv",
        PICTURE,
        [weight("w", 6, 2, 3, 3), weight("b", 6)],
        group=2,
        strides=[2, 1],
        pads=[0, 1, 2, 1],
        dilations=[1, 2],
    ),
    "convolution same upper": single("Conv", PICTURE, [weight("w", 3, 4, 3, 3)], auto_pad="SAME_UPPER", strides=[2, 2]),
    "convolution same lower": single("Conv", PICTURE, [weight("w", 3, 4, 2, 2)], auto_pad="SAME_LOWER", strides=[2, 2]),
    "convolution in one dimension": single("Conv", [2, 4, 9], [weight("w", 3, 4, 3)], pads=[1, 1]),
    "transposed convolution": single(
        "ConvTranspose",
        PICTURE,
        [weight("w", 4, 3, 3, 3), weight("b", 3)],
        strides=[2, 2],
        pads=[1, 1, 1, 1],
        output_padding=[1, 1],
    ),
    "transposed convolution in groups": single(
        "ConvTranspose", PICTURE, [weight("w", 4, 3, 2, 2)], strides=[2, 2], group=2
    ),
    "maximum pooling": single("MaxPool", PICTURE, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "maximum pooling rounded up": single("MaxPool", PICTURE, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    "mean pooling without its padding": single(
        "AveragePool", PICTURE, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]
    ),
    "mean pooling with its padding": single(
        "AveragePool", PICTURE, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1
    ),
    "global mean": single("GlobalAveragePool", PICTURE),
    "gelu": single("Gelu", PICTURE, opset=20),
    "gelu by tanh": single("Gelu", PICTURE, opset=20, approximate="tanh"),
    "hard sigmoid": single("HardSigmoid", PICTURE, alpha=0.3, beta=0.4),
    "hard swish": single("HardSwish", PICTURE),
    "leaky": single("LeakyRelu", PICTURE, alpha=0.2),
    "clip": single("Clip", PICTURE, [scalar("low", -0.5), scalar("high", 0.25)]),
    "clip of opset 10": single("Clip", PICTURE, opset=10, min=-0.5, max=0.25),
    "softmax": single("Softmax", PICTURE, axis=1),
    "softmax of opset 11 over all that follows": single("Softmax", PICTURE, opset=11, axis=1),
    "log softmax": single("LogSoftmax", PICTURE, axis=-1),
    "layer norm": single("LayerNormalization", PICTURE, [weight("s", 9, 7), weight("b", 9, 7)], axis=2),
    "power": single("Pow", PICTURE, [scalar("two", 2.0)]),
    "sum over axes given as an input": single("ReduceSum", PICTURE, [ints("axes", 1, 3)], keepdims=0),
    "mean over axes given as an attribute": single("ReduceMean", PICTURE, opset=13, axes=[2, 3]),
    "maximum over everything": single("ReduceMax", PICTURE, opset=13, keepdims=0),
    "matrix product": single("MatMul", PICTURE, [weight("w", 7, 5)]),
    "gemm": single("Gemm", [3, 4], [weight("w", 5, 4), weight("c", 5)], transB=1, alpha=0.5, beta=2.0),
    "flatten": single("Flatten", PICTURE, axis=2),
    "reshape that keeps and infers": single("Reshape", PICTURE, [ints("shape", 0, -1, 7)]),
    "transpose": single("Transpose", PICTURE, perm=[0, 2, 3, 1]),
    "slice with steps, backwards": single(
        "Slice", PICTURE, [ints("s", -1, 1), ints("e", -(2**31), 2**31), ints("a", 2, 3), ints("t", -2, 2)]
    ),
    "slice": single("Slice", PICTURE, [ints("s", 1, -4), ints("e", 100, -1), ints("a", 1, 2)]),
    "gather": single("Gather", PICTURE, [ints("rows", 3, -1, 0)], axis=1),
    "pad with a value": single("Pad", PICTURE, [ints("pads", 0, 0, 1, 2, 0, 0, 3, 0), scalar("fill", 0.5)]),
    "pad by reflection": single("Pad", PICTURE, [ints("pads", 0, 0, 1, 2, 0, 0, 3, 0)], mode="reflect"),
    "resize nearest": single(
        "Resize",
        PICTURE,
        [floats("roi"), floats("scales", 1, 1, 2, 2)],
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    ),
    "resize nearest half pixel": single("Resize", PICTURE, [floats("roi"), floats("scales", 1, 1, 1.7, 0.6)]),
    "resize linear by scales that do not come out even": single(
        "Resize", PICTURE, [floats("roi"), floats("scales", 1, 1, 1.7, 0.6)], mode="linear"
    ),
    "resize linear asymmetric": single(
        "Resize",
        PICTURE,
        [floats("roi"), floats("scales", 1, 1, 2, 3)],
        mode="linear",
        coordinate_transformation_mode="asymmetric",
    ),
    "resize linear": single(
        "Resize", PICTURE, [floats("roi"), floats("scales"), ints("sizes", 2, 4, 13, 15)], mode="linear"
    ),
    "resize linear with aligned corners": single(
        "Resize",
        PICTURE,
        [floats("roi"), floats("scales"), ints("sizes", 2, 4, 13, 5)],
        mode="linear",
        coordinate_transformation_mode="align_corners",
    ),
    "depth to space": single("DepthToSpace", PICTURE, blocksize=2),
    "depth to space, columns first": single("DepthToSpace", PICTURE, blocksize=2, mode="CRD"),
    "expand": single("Expand", [2, 1, 3], [ints("shape", 4, 1)]),
}


@pytest.mark.parametrize("name", SINGLE)
def test_an_operator_gives_what_onnxruntime_gives(name: str) -> None:
    both(SINGLE[name])


def rounding() -> onnx.ModelProto:
    nodes = [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "y")]
    zero = numpy_helper.from_array(np.array(128, dtype=np.uint8), "z")
    return model(nodes, [value("x", [1, 8])], [value("y", None)], [scalar("s", 0.1), zero])


def test_rounding_to_8_bits_is_exact_and_lets_gradients_through_where_it_does_not_clip() -> None:
    both(rounding())
    x = torch.tensor([[-100.0, -1.0, -0.26, 0.0, 0.33, 1.0, 5.0, 100.0]]).requires_grad_()
    (y,) = to_torch(rounding())(x)
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.tensor([[0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0]]))


def test_weights_ask_for_no_gradient_until_they_are_told_to() -> None:
    module = to_torch(onnx_nets.residual())
    assert list(module.parameters())
    assert not any(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize(
    ("net", "named"),
    [
        (onnx_nets.branching, "If"),
        (lambda: single("DFT", [1, 4, 2, 1], [], opset=17), "DFT"),
        (lambda: single("NonZero", [3], [], opset=18), "NonZero"),
    ],
)
def test_an_operator_that_is_not_in_the_table_is_refused_by_name(
    net: Callable[[], onnx.ModelProto], named: str
) -> None:
    with pytest.raises(MeshError) as caught:
        to_torch(net())
    assert caught.value.reason is Reason.MODEL_OPERATOR_UNSUPPORTED
    assert named in caught.value.metadata["operators"].split(", ")


def test_another_number_of_inputs_is_refused() -> None:
    with pytest.raises(MeshError) as caught:
        to_torch(onnx_nets.siamese())(torch.zeros(1, 4))
    assert caught.value.reason is Reason.FIELD_INVALID
