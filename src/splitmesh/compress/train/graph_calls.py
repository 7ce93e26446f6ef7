"""A node of an ONNX graph as the table of operators sees it, and how its inputs and attributes are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import helper
from torch import Tensor

from splitmesh.errors import MeshError, Reason
from splitmesh.model.operators import type_name

Values = Sequence[Tensor | None]
"""A node's inputs; None for one that is left out."""

Result = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Call:
    """One node, ready to run."""

    kind: str
    """Operator, with its domain where that is not ONNX's own."""
    name: str
    inputs: tuple[str, ...]
    """Empty names stand for inputs left out."""
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    opset: int

    @classmethod
    def of(cls, node: onnx.NodeProto, opset: int) -> Call:
        """The node of a graph under this version of its domain."""
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        return cls(type_name(node), node.name, tuple(node.input), tuple(node.output), attributes, opset)

    def text(self, name: str, default: str) -> str:
        """An attribute that ONNX keeps as bytes."""
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else str(value)

    def refuse(self, what: str) -> MeshError:
        """A use of the operator that the table does not cover."""
        return MeshError(
            Reason.MODEL_OPERATOR_UNSUPPORTED, f"{self.kind} {self.name!r}: {what} cannot be differentiated"
        )


def get(values: Values, position: int) -> Tensor | None:
    """An input that may be left out."""
    return values[position] if position < len(values) else None


def need(call: Call, values: Values, position: int) -> Tensor:
    """An input that must be there; MeshError MODEL_OPERATOR_UNSUPPORTED when it is left out."""
    value = get(values, position)
    if value is None:
        raise call.refuse(f"being without input {position}")
    return value


def ints(call: Call, values: Values, position: int, attribute: str) -> list[int] | None:
    """A list that newer opsets take as an input and older ones as an attribute."""
    value = get(values, position)
    if value is not None:
        return [int(entry) for entry in value.reshape(-1).tolist()]
    found = call.attributes.get(attribute)
    return None if found is None else [int(entry) for entry in found]
