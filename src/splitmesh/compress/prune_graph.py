"""Channels that can leave an ONNX graph, and taking them out.

A block is everything between the layers that make some channels and the layers that use them up: convolution, batch
normalisation, activation, depthwise convolution, pooling, a gate (squeeze and excite), and in the end convolutions or
matrix products that read all channels. Channels that an addition ties to others (a residual's outer channels), that are
joined with others, reshaped, normalised together or given out are in no block. Knows no data and no importance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from splitmesh.compress.whole_model import initialisers
from splitmesh.model.edit import Names
from splitmesh.model.graph import Graph
from splitmesh.tensor.spec import Array

Channels = NDArray[np.int64]

_ELEMENTWISE = """
    Abs Celu Clip Dropout Elu Erf Exp Gelu HardSigmoid HardSwish Identity LeakyRelu Mish Neg Relu Selu Sigmoid Softplus
    Softsign Sqrt Swish Tanh ThresholdedRelu
"""

_ONE_BY_ONE = frozenset(_ELEMENTWISE.split())
"""Work on every element by itself."""

_POOLS = frozenset({"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "GlobalLpPool", "MaxPool"})
_BINARY = frozenset({"Add", "Sub", "Mul", "Div"})
_PRODUCTS = frozenset({"Gemm", "MatMul"})


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a tensor holds the channels."""

    axis: int
    """1, or the last one of tokens ``[n, tokens, channels]``."""
    repeat: int = 1
    """Neighbouring features that belong to one channel, behind a flattening."""


@dataclass(frozen=True, slots=True)
class Use:
    """A layer that reads all channels of a block."""

    node: str
    tensor: str
    layout: Layout


@dataclass(slots=True)
class Block:
    """Channels that can go together."""

    channels: int
    makers: list[str] = field(default_factory=list)
    """Names of layers whose outputs these channels are; several with a gate."""
    passes: dict[str, int] = field(default_factory=dict)
    """Nodes between that hold something per channel, by name; the axis (from the end) of an operand that does."""
    users: list[Use] = field(default_factory=list)
    tensors: dict[str, Layout] = field(default_factory=dict)


class _NoBlockError(Exception):
    """The channels reach something they cannot be taken out of."""


def find_blocks(model: ModelProto) -> list[Block]:
    """Every block, from the input on. The model's nodes have names, its weights are initialisers."""
    search = _Search(model)
    blocks = []
    taken: set[str] = set()
    for node in search.graph.nodes:
        if node.name in taken or not search.is_layer(node):
            continue
        try:
            block = search.block(node)
        except _NoBlockError:
            continue
        if not taken & set(block.makers):
            taken |= set(block.makers)
            blocks.append(block)
    return blocks


class _Search:
    def __init__(self, model: ModelProto) -> None:
        self.graph = Graph(model)
        self._weights = initialisers(model)

    def is_layer(self, node: NodeProto) -> bool:
        """A layer whose output channels have a weight each, in float32."""
        if node.op_type == "Conv":
            return self._is_weight(node.input[1], 3) and _integer(node, "group", 1) == 1 and self._optional(node, 2)
        return self._is_product(node)

    def block(self, maker: NodeProto) -> Block:
        """The block that this layer makes; _NoBlockError."""
        channels = _outputs_of(maker, self._weights)
        block = Block(channels, [maker.name])
        self._reach(block, maker.output[0], Layout(1 if maker.op_type == "Conv" else self._last(maker.output[0])))
        waiting = self._readers(block, maker.output[0])
        while waiting:
            progress = [index for index in waiting if self._take(block, self.graph.nodes[index])]
            if not progress:
                self._add_gate(block, self.graph.nodes[waiting[0]])
                continue
            rest = [index for index in waiting if index not in progress]
            for index in progress:
                for name in self.graph.nodes[index].output[:1]:
                    if name in block.tensors:
                        rest += self._readers(block, name)
            waiting = list(dict.fromkeys(rest))
        if not block.users:
            raise _NoBlockError
        return block

    def _take(self, block: Block, node: NodeProto) -> bool:
        """Adds a node that reads the block's channels; False when another of its inputs is not known yet."""
        inside = [name for name in node.input if name in block.tensors]
        layout = block.tensors[inside[0]]
        if node.domain not in ("", "ai.onnx"):
            raise _NoBlockError
        if node.op_type in _BINARY or node.op_type == "PRelu":
            return self._take_binary(block, node, layout)
        if node.input[0] != inside[0] or len(inside) > 1:
            raise _NoBlockError
        pools = node.op_type in _POOLS and layout.axis == 1 and len(node.output) == 1
        if node.op_type in _ONE_BY_ONE or pools:
            self._reach(block, node.output[0], layout)
        elif node.op_type == "BatchNormalization" and layout == Layout(1):
            if not all(self._is_weight(name, 1) for name in node.input[1:5]) or _integer(node, "training_mode", 0):
                raise _NoBlockError
            block.passes[node.name] = 0
            self._reach(block, node.output[0], layout)
        elif node.op_type in ("Flatten", "Reshape", "Squeeze", "ReduceMean"):
            self._take_flattening(block, node, layout)
        elif node.op_type == "Conv" and layout == Layout(1):
            self._take_convolution(block, node, layout)
        elif self._is_product(node) and layout.axis == self._last(inside[0]):
            block.users.append(Use(node.name, inside[0], layout))
        else:
            raise _NoBlockError
        return True

    def _take_convolution(self, block: Block, node: NodeProto, layout: Layout) -> None:
        if not self._is_weight(node.input[1], 3) or not self._optional(node, 2):
            raise _NoBlockError
        weight, group = self._weights[node.input[1]], _integer(node, "group", 1)
        if group == 1:
            block.users.append(Use(node.name, node.input[0], layout))
        elif group == block.channels == weight.dims[0] and weight.dims[1] == 1:
            block.passes[node.name] = 0
            self._reach(block, node.output[0], layout)
        else:
            raise _NoBlockError

    def _take_binary(self, block: Block, node: NodeProto, layout: Layout) -> bool:
        other = [name for name in node.input if name not in block.tensors]
        if not other:
            if any(block.tensors[name] != layout for name in node.input):
                raise _NoBlockError
        elif other[0] in self._weights:
            if node.op_type == "PRelu" and node.input[0] not in block.tensors:
                raise _NoBlockError
            axis = self._constant_axis(node, other[0], block, layout)
            if axis is not None:
                block.passes[node.name] = axis
        else:
            return False
        self._reach(block, node.output[0], layout)
        return True

    def _constant_axis(self, node: NodeProto, name: str, block: Block, layout: Layout) -> int | None:
        """The axis (from the end) of a constant that holds a value per channel; None when it has one for all."""
        inside = next(entry for entry in node.input if entry in block.tensors)
        rank, constant = self._rank(inside), self._weights[name]
        if len(constant.dims) > rank:
            raise _NoBlockError
        axis = layout.axis - rank
        size = constant.dims[axis] if len(constant.dims) >= -axis else 1
        if size == 1:
            return None
        if size != block.channels * layout.repeat:
            raise _NoBlockError
        return axis

    def _take_flattening(self, block: Block, node: NodeProto, layout: Layout) -> None:
        """From ``[n, channels, ...]`` to ``[n, features]``, or a mean over space."""
        before, after = self.graph.sample_spec(node.input[0]), self.graph.sample_spec(node.output[0])
        if layout.axis != 1 or before is None or after is None or len(before.shape) < 2:
            raise _NoBlockError
        features = block.channels * layout.repeat
        shape, was = self.graph.shape(node.output[0]), self.graph.shape(node.input[0])
        if shape is None or was is None or not shape or shape[0] != was[0]:
            raise _NoBlockError
        if node.op_type == "ReduceMean":
            # The channels stay where they are exactly when their axis still has its size.
            axes = self._axes(node)
            if axes is None or any(axis % len(before.shape) < 2 for axis in axes) or after.shape[1] != features:
                raise _NoBlockError
            self._reach(block, node.output[0], layout)
            return
        repeat, rest = divmod(after.shape[1] if len(after.shape) == 2 else 0, block.channels)
        if rest or not repeat or (node.op_type == "Squeeze" and repeat != layout.repeat):
            raise _NoBlockError
        if node.op_type == "Reshape":
            target = self._weights.get(node.input[1])
            sizes = [] if target is None else [int(size) for size in numpy_helper.to_array(target)]
            if not sizes or (0 in sizes and _integer(node, "allowzero", 0)):
                raise _NoBlockError
            if sizes[1] not in (-1, 0):
                block.passes[node.name] = 0
        self._reach(block, node.output[0], Layout(1, repeat))

    def _axes(self, node: NodeProto) -> list[int] | None:
        written = next((list(a.ints) for a in node.attribute if a.name == "axes"), None)
        if written is not None:
            return written
        if len(node.input) > 1 and node.input[1] in self._weights:
            return [int(axis) for axis in numpy_helper.to_array(self._weights[node.input[1]])]
        return None

    def _add_gate(self, block: Block, node: NodeProto) -> None:
        """A product with a gate: another layer's channels, one for each, which nothing else reads."""
        others = [name for name in node.input if name not in block.tensors]
        if node.op_type != "Mul" or len(others) != 1:
            raise _NoBlockError
        name, path = others[0], list[NodeProto]()
        while True:
            maker = self.graph.producers.get(name)
            if maker is None or len(self.graph.consumers.get(name, ())) != 1 or name in self.graph.outputs:
                raise _NoBlockError
            made_by = self.graph.nodes[maker]
            if self.is_layer(made_by):
                break
            if made_by.op_type not in _ONE_BY_ONE or len(path) > 8:
                raise _NoBlockError
            path.append(made_by)
            name = made_by.input[0]
        inside = next(entry for entry in node.input if entry in block.tensors)
        layout = block.tensors[inside]
        if made_by.op_type != "Conv" or layout != Layout(1) or self._rank(inside) != self._rank(name):
            raise _NoBlockError
        if _outputs_of(made_by, self._weights) != block.channels:
            raise _NoBlockError
        block.makers.append(made_by.name)
        for tensor in (name, *(entry.output[0] for entry in path)):
            self._reach(block, tensor, layout)

    def _reach(self, block: Block, tensor: str, layout: Layout) -> None:
        if tensor in self.graph.outputs:
            raise _NoBlockError
        block.tensors[tensor] = layout

    def _readers(self, block: Block, tensor: str) -> list[int]:
        readers = self.graph.consumers.get(tensor, ())
        if not readers or any(tensor not in self.graph.nodes[index].input for index in readers):
            raise _NoBlockError  # nobody, or the body of an If or Loop
        return [index for index in readers if self.graph.nodes[index].output[0] not in block.tensors]

    def _is_product(self, node: NodeProto) -> bool:
        if node.op_type not in _PRODUCTS or not self._is_weight(node.input[1], 2):
            return False
        if len(self._weights[node.input[1]].dims) != 2 or node.input[0] in self._weights:
            return False
        plain = node.op_type == "MatMul" or (
            _real(node, "alpha", 1.0) == 1.0 == _real(node, "beta", 1.0) and not _integer(node, "transA", 0)
        )
        return plain and self._optional(node, 2)

    def _optional(self, node: NodeProto, position: int) -> bool:
        """No bias, or one value per output."""
        if len(node.input) <= position or not node.input[position]:
            return True
        bias = self._weights.get(node.input[position])
        return bias is not None and list(bias.dims) == [_outputs_of(node, self._weights)]

    def _is_weight(self, name: str, rank: int) -> bool:
        found = self._weights.get(name)
        return found is not None and found.data_type == TensorProto.FLOAT and len(found.dims) >= rank

    def _rank(self, tensor: str) -> int:
        shape = self.graph.shape(tensor)
        if shape is None:
            raise _NoBlockError
        return len(shape)

    def _last(self, tensor: str) -> int:
        return self._rank(tensor) - 1


def take_out(model: ModelProto, block: Block, keep: Channels) -> None:
    """Leaves only the channels ``keep`` (ascending) of a block; changes the model."""
    weights, names = initialisers(model), Names(model)
    nodes = {node.name: node for node in model.graph.node}

    def replace(node: NodeProto, position: int, axis: int, kept: Channels) -> None:
        if len(node.input) <= position or not node.input[position]:
            return
        # Always a copy: another node may read the same weight.
        value = np.take(numpy_helper.to_array(weights[node.input[position]]), kept, axis=axis)
        put(model, node, position, value, names)

    for name in block.makers:
        node = nodes[name]
        replace(node, 1, _output_axis(node), keep)
        replace(node, 2, 0, keep)
    for name, axis in block.passes.items():
        node = nodes[name]
        if node.op_type == "BatchNormalization":
            for position in range(1, 5):
                replace(node, position, 0, keep)
        elif node.op_type == "Conv":
            replace(node, 1, 0, keep)
            replace(node, 2, 0, keep)
            next(entry for entry in node.attribute if entry.name == "group").i = len(keep)
        elif node.op_type == "Reshape":
            target = numpy_helper.to_array(weights[node.input[1]]).copy()
            target[1] = len(keep) * block.tensors[node.output[0]].repeat
            put(model, node, 1, target, names)
        else:
            position = next(at for at, entry in enumerate(node.input) if entry not in block.tensors)
            replace(node, position, axis, spread_over(keep, block.tensors[node.output[0]]))
    for use in block.users:
        replace(nodes[use.node], 1, input_axis(nodes[use.node]), spread_over(keep, use.layout))


def spread_over(keep: Channels, layout: Layout) -> Channels:
    """Numbers of the features that belong to these channels."""
    return (keep[:, None] * layout.repeat + np.arange(layout.repeat)).reshape(-1)


def put(model: ModelProto, node: NodeProto, position: int, value: Array, names: Names) -> None:
    """Give a node its own weight at this input; the node may have had none there."""
    while len(node.input) <= position:
        node.input.append("")
    base = node.input[position] or f"{node.name}_bias"
    fresh = names.fresh(base)
    model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), fresh))
    node.input[position] = fresh


def forget_unread(model: ModelProto) -> ModelProto:
    """Without weights that nothing reads any more and without shapes that were true before; changes the model."""
    graph = model.graph
    read = {name for node in _with_bodies(graph.node) for name in node.input} | {value.name for value in graph.output}
    gone = {entry.name for entry in graph.initializer if entry.name not in read}
    weights = [entry for entry in graph.initializer if entry.name not in gone]
    inputs = [value for value in graph.input if value.name not in gone]
    del graph.initializer[:]
    graph.initializer.extend(weights)
    del graph.input[:]
    graph.input.extend(inputs)
    del graph.value_info[:]
    return model


def _with_bodies(nodes: Sequence[NodeProto]) -> Iterator[NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _with_bodies(body.node)


def input_axis(node: NodeProto) -> int:
    """Of a layer's weight, where its input channels are."""
    if node.op_type == "Conv":
        return 1
    return 1 if _integer(node, "transB", 0) else 0


def _output_axis(node: NodeProto) -> int:
    return 0 if node.op_type == "Conv" else 1 - input_axis(node)


def _outputs_of(node: NodeProto, weights: dict[str, TensorProto]) -> int:
    return int(weights[node.input[1]].dims[_output_axis(node)])


def _integer(node: NodeProto, name: str, default: int) -> int:
    found = next((entry for entry in node.attribute if entry.name == name), None)
    return default if found is None else int(helper.get_attribute_value(found))


def _real(node: NodeProto, name: str, default: float) -> float:
    found = next((entry for entry in node.attribute if entry.name == name), None)
    return default if found is None else float(helper.get_attribute_value(found))
