"""A model as a graph: who makes and who reads each tensor, which tensors depend on the picture, what each node costs.

Built from a model that :mod:`splitmesh.model.load` accepted (no functions). Control flow (``If``, ``Loop``, ``Scan``) is
one node: what its bodies take from outside counts as its inputs. Does not know of cuts.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence

import onnx
from onnx import TensorProto

from splitmesh.errors import MeshError, Reason
from splitmesh.model.macs import node_macs
from splitmesh.model.operators import canonical_domain
from splitmesh.model.shapes import Shape, batch_shapes, batch_symbol, runtime_inputs
from splitmesh.model.walk import inner_names, reads
from splitmesh.tensor.spec import TensorSpec

DTYPE_OF: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.DOUBLE: "float64",
    TensorProto.UINT8: "uint8",
    TensorProto.INT8: "int8",
    TensorProto.INT32: "int32",
    TensorProto.INT64: "int64",
    TensorProto.BOOL: "bool",
}
"""ONNX element types by the names of ``splitmesh.tensor.DTYPES``."""


class Graph:
    """Read-only view of one model.

    Nodes are numbered in a topological order that keeps the file's order wherever it is one. A node is *replicated*
    when its outputs do not depend on what is in the inputs, only on constants and on the shapes of tensors: such
    nodes are copied to every side of a cut that needs them and never cut.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        """Raises MeshError MODEL_CORRUPT when the shapes contradict or the nodes form a cycle."""
        self.model = model
        self.nodes: tuple[onnx.NodeProto, ...] = _ordered(model.graph.node)
        self.inputs: tuple[str, ...] = tuple(value.name for value in runtime_inputs(model))
        """Tensors a caller must feed."""
        self.outputs: tuple[str, ...] = tuple(value.name for value in model.graph.output)
        self.initialisers: frozenset[str] = frozenset(init.name for init in model.graph.initializer) | frozenset(
            sparse.values.name for sparse in model.graph.sparse_initializer
        )
        self.batch_symbol: str | None = batch_symbol(model)
        """Name of the dynamic batch dimension, "" when it has none; None when the batch is fixed."""
        inferred = batch_shapes(model)
        self._elem_types: Mapping[str, int] = inferred.elem_types
        self._shapes: Mapping[str, Shape] = inferred.shapes
        self.producers: dict[str, int] = {out: i for i, node in enumerate(self.nodes) for out in node.output if out}
        """Number of the node that makes a tensor."""
        self.reads: tuple[tuple[str, ...], ...] = tuple(tuple(reads(node)) for node in self.nodes)
        """What each node needs: its inputs, and what bodies of control flow take from outside; without duplicates."""
        self.consumers: dict[str, tuple[int, ...]] = _consumers(self.reads)
        """Numbers of the nodes that read a tensor, ascending; absent when none does."""
        self.constants, self.shape_only = self._classify()
        self.inner: frozenset[str] = frozenset(inner_names(self.nodes))
        """Tensors inside the bodies of control flow."""
        self.replicated: frozenset[str] = self.constants | self.shape_only
        """Tensors that are recomputed wherever they are needed."""
        self.macs: tuple[int, ...] = tuple(node_macs(node, self._sample_shape) for node in self.nodes)
        """Estimated multiply-accumulates of each node for one sample; 0 for operators that are not linear maps."""

    def shape(self, name: str) -> Shape | None:
        """Dimensions as functions of the batch; None when not even the rank is known."""
        return self._shapes.get(name)

    def elem_type(self, name: str) -> int:
        """``TensorProto`` element type; UNDEFINED when unknown."""
        return self._elem_types.get(name, TensorProto.UNDEFINED)

    def spec(self, name: str) -> TensorSpec | None:
        """Type and shape, ``-1`` for dimensions that vary or are unknown; None when rank or type is unknown."""
        dtype, shape = DTYPE_OF.get(self.elem_type(name)), self._shapes.get(name)
        if dtype is None or shape is None:
            return None
        return TensorSpec(name, dtype, tuple(-1 if d is None or d.per_sample else d.fixed for d in shape))

    def require_spec(self, name: str) -> TensorSpec:
        """:meth:`spec`, or MeshError MODEL_SHAPE_UNKNOWN."""
        spec = self.spec(name)
        if spec is None:
            raise MeshError(
                Reason.MODEL_SHAPE_UNKNOWN,
                f"the type or the number of dimensions of tensor {name!r} cannot be inferred",
                metadata={"tensor": name},
            )
        return spec

    def sample_spec(self, name: str) -> TensorSpec | None:
        """Type and shape for a batch of 1; None when a dimension is unknown."""
        dtype, shape = DTYPE_OF.get(self.elem_type(name)), self._sample_shape(name)
        return TensorSpec(name, dtype, shape) if dtype is not None and shape is not None else None

    def value_inputs(self, node: int) -> Iterator[str]:
        """What a node reads that is not replicated, without duplicates."""
        return (name for name in self.reads[node] if name not in self.replicated)

    def _sample_shape(self, name: str) -> tuple[int, ...] | None:
        shape = self._shapes.get(name)
        if shape is None:
            return None
        dims = tuple(dim.at(1) for dim in shape if dim is not None)
        return dims if len(dims) == len(shape) else None

    def _classify(self) -> tuple[frozenset[str], frozenset[str]]:
        constants, shape_only = set(self.initialisers), set[str]()
        for node, needed in zip(self.nodes, self.reads, strict=True):
            inputs = set(needed)
            outputs = [name for name in node.output if name]
            if inputs <= constants:
                constants.update(outputs)
            elif inputs <= constants | shape_only or self._reads_only_a_shape(node):
                shape_only.update(outputs)
        return frozenset(constants), frozenset(shape_only)

    def _reads_only_a_shape(self, node: onnx.NodeProto) -> bool:
        if canonical_domain(node.domain) != "" or node.op_type not in ("Shape", "Size"):
            return False
        shape = self._shapes.get(node.input[0])
        if shape is None:
            return False
        known = [dim for dim in shape if dim is not None]
        # The number of elements is no sum of batch sizes, so Size is rebuilt only where it is a constant.
        linear = node.op_type == "Shape" or not any(dim.per_sample for dim in known)
        return len(known) == len(shape) and linear


def _consumers(needed: Sequence[Sequence[str]]) -> dict[str, tuple[int, ...]]:
    found: dict[str, list[int]] = {}
    for index, names in enumerate(needed):
        for name in names:
            found.setdefault(name, []).append(index)
    return {name: tuple(indices) for name, indices in found.items()}


def _ordered(nodes: Sequence[onnx.NodeProto]) -> tuple[onnx.NodeProto, ...]:
    """Kahn's algorithm, always taking the ready node that comes first in the file."""
    producers = {out: i for i, node in enumerate(nodes) for out in node.output if out}
    waiting, readers = [0] * len(nodes), [list[int]() for _ in nodes]
    for index, node in enumerate(nodes):
        for source in {producers[name] for name in reads(node) if name in producers}:
            waiting[index] += 1
            readers[source].append(index)
    ready = [index for index, count in enumerate(waiting) if count == 0]
    order: list[onnx.NodeProto] = []
    while ready:
        index = heapq.heappop(ready)
        order.append(nodes[index])
        for reader in readers[index]:
            waiting[reader] -= 1
            if waiting[reader] == 0:
                heapq.heappush(ready, reader)
    if len(order) < len(nodes):
        raise MeshError(Reason.MODEL_CORRUPT, "the model's nodes form a cycle")
    return tuple(order)
