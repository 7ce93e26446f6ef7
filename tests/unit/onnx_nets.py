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
