"""Small ONNX networks for tests, each with the property its name says. Weights are seeded: the same net every time."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


def value(name: str, shape: Sequence[int | str | None] | None, elem_type: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, elem_type, shape)


def weight(name: str, *shape: int, seed: int = 0) -> onnx.TensorProto:
    rng = np.random.default_rng([seed, *name.encode()])
    return numpy_helper.from_array(rng.normal(0, 0.3, shape).astype(np.float32), name)


def ints(name: str, *values: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype=np.int64), name)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Sequence[onnx.TensorProto] = (),
    *,
    opset: int = 17,
    ir_version: int = 9,
    functions: Sequence[onnx.FunctionProto] = (),
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "net", inputs, outputs, weights)
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version, functions=functions)


def data(net: onnx.ModelProto) -> bytes:
    return net.SerializeToString()


def node(op_type: str, inputs: str, outputs: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs.split(), outputs.split(), **attributes)


def residual(*, opset: int = 17, batch: int | str | None = "N") -> onnx.ModelProto:
    """conv, then a block with a skip connection, pooling, a classifier of 5 classes; one weight is used twice."""
    nodes = [
        node("Conv", "x w0", "stem", pads=[1, 1, 1, 1]),
        node("Relu", "stem", "a"),
        node("Conv", "a w1", "c1", pads=[1, 1, 1, 1]),
        node("Relu", "c1", "r1"),
        node("Conv", "r1 w1", "c2", pads=[1, 1, 1, 1]),
        node("Add", "c2 a", "sum"),
        node("Relu", "sum", "b"),
        node("GlobalAveragePool", "b", "pool"),
        node("Reshape", "pool target", "flat"),
        node("Gemm", "flat w2 bias", "logits", transB=1),
    ]
    weights = [
        weight("w0", 8, 3, 3, 3),
        weight("w1", 8, 8, 3, 3),
        weight("w2", 5, 8),
        weight("bias", 5),
        ints("target", -1, 8),
    ]
    return model(nodes, [value("x", [batch, 3, 8, 8])], [value("logits", [batch, 5])], weights, opset=opset)


def dense() -> onnx.ModelProto:
    """Every layer reads the concatenation of all before it."""
    nodes, live = [], ["x"]
    weights = []
    for layer in range(3):
        joined = "x" if layer == 0 else f"cat{layer}"
        if layer:
            nodes.append(helper.make_node("Concat", live, [joined], axis=1))
        nodes += [node("Conv", f"{joined} w{layer}", f"c{layer}"), node("Relu", f"c{layer}", f"r{layer}")]
        weights.append(weight(f"w{layer}", 4, 3 + 4 * layer, 1, 1))
        live.append(f"r{layer}")
    nodes += [helper.make_node("Concat", live, ["all"], axis=1), node("GlobalAveragePool", "all", "y")]
    return model(nodes, [value("x", ["N", 3, 4, 4])], [value("y", ["N", 15, 1, 1])], weights)


def two_branches() -> onnx.ModelProto:
    """A stem, two branches that meet at the end: only two-tensor cuts in the middle. The file interleaves the branches."""
    nodes = [
        node("Relu", "x", "stem"),
        node("MatMul", "stem wl", "l1"),
        node("MatMul", "stem wr", "r1"),
        node("Tanh", "l1", "l2"),
        node("Sigmoid", "r1", "r2"),
        node("Mul", "l2 r2", "joined"),
        node("MatMul", "joined wo", "y"),
    ]
    weights = [weight("wl", 4, 6), weight("wr", 4, 6), weight("wo", 6, 3)]
    return model(nodes, [value("x", ["N", 4])], [value("y", ["N", 3])], weights)


def early_shape() -> onnx.ModelProto:
    """The batch size is read from the input at the start and used by a reshape at the end."""
    nodes = [
        node("Shape", "x", "shape"),
        node("Gather", "shape zero", "batch"),
        node("Unsqueeze", "batch axis", "batch1"),
        node("Concat", "batch1 rest", "target", axis=0),
        node("Relu", "x", "a"),
        node("Mul", "a two", "b"),
        node("Sigmoid", "b", "c"),
        node("Reshape", "c target", "d"),
        node("MatMul", "d w", "y"),
    ]
    zero = numpy_helper.from_array(np.asarray(0, dtype=np.int64), "zero")
    two = numpy_helper.from_array(np.asarray(2, dtype=np.float32), "two")
    weights = [zero, ints("axis", 0), ints("rest", -1), two, weight("w", 12, 3)]
    return model(nodes, [value("x", ["N", 3, 4])], [value("y", ["N", 3])], weights)


def quantised() -> onnx.ModelProto:
    """Quantise, dequantise, multiply: the tensor in the middle is int8."""
    nodes = [
        node("Relu", "x", "a"),
        node("QuantizeLinear", "a scale zero", "q"),
        node("DequantizeLinear", "q scale zero", "dq"),
        node("MatMul", "dq w", "y"),
    ]
    weights = [
        numpy_helper.from_array(np.asarray(0.02, dtype=np.float32), "scale"),
        numpy_helper.from_array(np.asarray(-128, dtype=np.int8), "zero"),
        weight("w", 4, 3),
    ]
    return model(nodes, [value("x", ["N", 4])], [value("y", ["N", 3])], weights)


def early_output() -> onnx.ModelProto:
    """A second output is computed before the first."""
    nodes = [
        node("Relu", "x", "a"),
        node("Neg", "a", "aux"),
        node("Sigmoid", "a", "b"),
        node("Tanh", "b", "y"),
    ]
    return model(nodes, [value("x", ["N", 4])], [value("y", ["N", 4]), value("aux", ["N", 4])])


def from_torch(module: object, *shape: int, opset: int = 17) -> onnx.ModelProto:
    """Exported with a dynamic batch by torch's TorchScript exporter, which writes shape arithmetic into the graph."""
    import torch

    assert isinstance(module, torch.nn.Module)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        torch.onnx.export(
            module.eval(),
            (torch.zeros(2, *shape),),
            file,
            dynamo=False,
            opset_version=opset,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}},
        )
    return onnx.load_model_from_string(file.getvalue())


def siamese(*, batch: int | str = "N") -> onnx.ModelProto:
    """Two inputs through one encoder (its weights used twice), branch after branch, and a comparison of both."""
    nodes = []
    for side in ("left", "right"):
        nodes += [
            node("MatMul", f"{side} w", f"{side}_hidden"),
            node("Relu", f"{side}_hidden", f"{side}_code"),
        ]
    nodes += [node("Sub", "left_code right_code", "gap"), node("MatMul", "gap v", "score")]
    inputs = [value("left", [batch, 4]), value("right", [batch, 4])]
    return model(nodes, inputs, [value("score", [batch, 3])], [weight("w", 4, 6), weight("v", 6, 3)])


def late_input(*shape: int | str) -> onnx.ModelProto:
    """A second input that only the last operator reads."""
    nodes = [node("Relu", "x", "a"), node("Tanh", "a", "b"), node("Mul", "b gain", "y")]
    return model(nodes, [value("x", ["N", 4]), value("gain", shape)], [value("y", ["N", 4])])


def branching(*, opset: int = 17) -> onnx.ModelProto:
    """An ``If`` in the middle whose branches read a tensor and a weight from outside."""
    then = helper.make_graph(
        [node("MatMul", "b w", "t0"), node("Relu", "t0", "t1")], "then", [], [value("t1", ["N", 4])]
    )
    other = helper.make_graph([node("Neg", "b", "e1")], "else", [], [value("e1", ["N", 4])])
    nodes = [
        node("Tanh", "x", "a"),
        node("Sigmoid", "a", "b"),
        node("ReduceSum", "flag", "total", keepdims=0),
        node("Greater", "total zero", "c"),
        helper.make_node("If", ["c"], ["d"], then_branch=then, else_branch=other),
        node("Neg", "d", "e"),
        node("MatMul", "e w", "y"),
    ]
    zero = numpy_helper.from_array(np.asarray(0, dtype=np.float32), "zero")
    flag = numpy_helper.from_array(np.ones(2, dtype=np.float32), "flag")
    return model(nodes, [value("x", ["N", 4])], [value("y", ["N", 4])], [zero, flag, weight("w", 4, 4)], opset=opset)


def looping(body: Sequence[onnx.NodeProto] = (), *, turns: int = 3) -> onnx.ModelProto:
    """A ``Loop`` that carries ``v`` and captures the weight ``w``; by default it multiplies by it at each turn."""
    inner = helper.make_graph(
        [node("Identity", "go", "go_on"), *(body or [node("MatMul", "v w", "m"), node("Tanh", "m", "v_next")])],
        "body",
        [value("i", [], TensorProto.INT64), value("go", [], TensorProto.BOOL), value("v", None)],
        [value("go_on", [], TensorProto.BOOL), value("v_next", None)],
    )
    nodes = [
        node("Tanh", "x", "a"),
        helper.make_node("Loop", ["turns", "", "a"], ["b"], body=inner),
        node("Neg", "b", "c"),
        node("Relu", "c", "y"),
    ]
    count = numpy_helper.from_array(np.asarray(turns, dtype=np.int64), "turns")
    return model(nodes, [value("x", ["N", 4])], [value("y", ["N", 4])], [count, weight("w", 4, 4)])


def scanning() -> onnx.ModelProto:
    """A ``Scan`` that sums the rows of a constant onto a carried tensor."""
    body = helper.make_graph(
        [node("Add", "s row", "s_next"), node("Identity", "s_next", "seen")],
        "body",
        [value("s", None), value("row", None)],
        [value("s_next", None), value("seen", None)],
    )
    nodes = [
        node("Tanh", "x", "a"),
        helper.make_node("Scan", ["a", "rows"], ["b", "all"], body=body, num_scan_inputs=1),
        node("Neg", "b", "y"),
    ]
    return model(nodes, [value("x", ["N", 4])], [value("y", None)], [weight("rows", 3, 4)])


def quantised_net(*, per_channel: bool) -> onnx.ModelProto:
    """A residual block with quantise-dequantise pairs on activations and 8-bit weights, as quantisers write them."""
    rng = np.random.default_rng(3)
    constants = [
        numpy_helper.from_array(np.asarray(0.03, dtype=np.float32), "scale"),
        numpy_helper.from_array(np.asarray(0, dtype=np.int8), "zero"),
        weight("head", 8, 5),
    ]
    nodes: list[onnx.NodeProto] = []

    def pair(source: str) -> str:
        nodes.append(node("QuantizeLinear", f"{source} scale zero", f"{source}_q"))
        nodes.append(node("DequantizeLinear", f"{source}_q scale zero", f"{source}_dq"))
        return f"{source}_dq"

    def convolution(source: str, result: str, inputs: int) -> None:
        scales = np.full(8 if per_channel else (), 0.01, dtype=np.float32)
        if per_channel:
            scales *= np.linspace(0.5, 1.5, 8, dtype=np.float32)
        constants.extend(
            [
                numpy_helper.from_array(rng.integers(-127, 128, (8, inputs, 3, 3), dtype=np.int8), f"{result}_w"),
                numpy_helper.from_array(scales, f"{result}_s"),
                numpy_helper.from_array(np.zeros(scales.shape, dtype=np.int8), f"{result}_z"),
            ]
        )
        axis = {"axis": 0} if per_channel else {}
        nodes.append(node("DequantizeLinear", f"{result}_w {result}_s {result}_z", f"{result}_f", **axis))
        nodes.append(node("Conv", f"{source} {result}_f", result, pads=[1, 1, 1, 1]))

    convolution(pair("x"), "stem", 3)
    stem = pair("stem")
    convolution(stem, "deep", 8)
    nodes.append(node("Add", f"{pair('deep')} {stem}", "sum"))
    nodes.append(node("GlobalAveragePool", pair("sum"), "pool"))
    nodes.append(node("Flatten", pair("pool"), "flat"))
    nodes.append(node("MatMul", "flat head", "y"))
    return model(nodes, [value("x", ["N", 3, 8, 8])], [value("y", ["N", 5])], constants)
