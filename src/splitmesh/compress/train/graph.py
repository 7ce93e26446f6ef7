"""An ONNX graph as a torch module, so that gradients run through a tail that exists only as ONNX.

Executes node after node, in inference mode (batch normalisation uses its stored figures, dropout does nothing); what
each operator does is ``graph_operators.py``'s table. Quantisation lets gradients pass as if it were not there. Knows
nothing of training. Control flow and functions of the model's own are refused.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from splitmesh.compress.train.graph_calls import Call
from splitmesh.compress.train.graph_operators import OPERATORS
from splitmesh.errors import MeshError, Reason
from splitmesh.model.operators import canonical_domain, type_name


class GraphModule(nn.Module):
    """The graph's inputs in its order (initialisers are none) to its outputs in its order, always a tuple."""

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        opsets = {canonical_domain(entry.domain): entry.version for entry in model.opset_import}
        self._calls = [Call.of(node, opsets.get(canonical_domain(node.domain), 1)) for node in model.graph.node]
        weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self._slots = {name: f"value_{number}" for number, name in enumerate(weights)}
        for name, array in weights.items():
            tensor = torch.from_numpy(np.array(array))
            if tensor.is_floating_point():
                self.register_parameter(self._slots[name], nn.Parameter(tensor, requires_grad=False))
            else:
                self.register_buffer(self._slots[name], tensor)
        self.input_names = tuple(info.name for info in model.graph.input if info.name not in weights)
        """Of the graph, in order."""
        self.output_names = tuple(info.name for info in model.graph.output)
        """Of the graph, in order."""
        self._last_use = self._last_uses()

    def _last_uses(self) -> list[list[str]]:
        """Names no longer needed after each call: features of a batch are large, and gradients keep what they need."""
        seen = set(self.output_names)
        ends: list[list[str]] = []
        for call in reversed(self._calls):
            ends.append([name for name in dict.fromkeys(call.inputs) if name and name not in seen])
            seen.update(call.inputs)
        return ends[::-1]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Values as onnxruntime gives them, up to float32 rounding. MeshError FIELD_INVALID for another number of inputs."""
        if len(inputs) != len(self.input_names):
            raise MeshError(
                Reason.FIELD_INVALID, f"{len(inputs)} inputs given, the graph takes {list(self.input_names)}"
            )
        values: dict[str, Tensor] = {name: getattr(self, slot) for name, slot in self._slots.items()}
        values.update(zip(self.input_names, inputs, strict=True))
        for call, done in zip(self._calls, self._last_use, strict=True):
            results = OPERATORS[call.kind](call, [values[name] if name else None for name in call.inputs])
            named = (results,) if isinstance(results, Tensor) else results
            values.update((name, value) for name, value in zip(call.outputs, named, strict=False) if name)
            for name in done:
                values.pop(name, None)
        return tuple(values[name] for name in self.output_names)


def to_torch(model: onnx.ModelProto) -> nn.Module:
    """A module that computes what ``model`` does and that can be differentiated; see :class:`GraphModule`.

    Its weights are parameters that ask for no gradient until they are told to. MeshError MODEL_OPERATOR_UNSUPPORTED
    names every operator that is not in the table.
    """
    if missing := unsupported(model):
        raise MeshError(
            Reason.MODEL_OPERATOR_UNSUPPORTED,
            f"cannot be differentiated: {', '.join(missing)}",
            metadata={"operators": ", ".join(missing)},
        )
    return GraphModule(model).eval()


def unsupported(model: onnx.ModelProto) -> Sequence[str]:
    """Operators of the model that :func:`to_torch` does not know, sorted, each once."""
    return sorted(
        {type_name(node) for node in model.graph.node if Call.of(node, 1).kind not in OPERATORS or _has_bodies(node)}
    )


def _has_bodies(node: onnx.NodeProto) -> bool:
    kinds = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    return any(attribute.type in kinds for attribute in node.attribute)
