"""Which operators of a PyTorch program have no translation to ONNX: all of them, not the one that its exporter stops at.

Asks the exporter's own table, operator by operator, after the exporter's own decompositions. That table is no public part of
torch, so a torch without it gives none; then the exporter's own complaint has to do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch

from splitmesh.errors import Reason
from splitmesh.model.unsupported import MAX_PLACES, Unsupported

_STOPPED_AT = re.compile(r"call_function\[target=torch\.ops\.([\w.]+)\]")
_CAUSE = re.compile(r"^<class '[\w.]*?(\w+)'>: (.*)$", re.MULTILINE)

_ORDERING = "with_effects"
"""What torch wraps around a check to keep its place; the exporter drops it."""

HINT = (
    "replace by operators that ONNX has (see docs.pytorch.org, torch.onnx), or do this outside of the model; "
    "a newer torch or onnxscript may translate it"
)
HINTS = {
    "linalg": "ONNX has no eigenvalues, decompositions or solvers; compute this outside of the model",
    "rand": "takes random numbers; call eval() before the export, or make the numbers an input",
    "fft": "write the transform as a MatMul with a constant matrix, or do it before the model",
    "histc": "count with comparisons and ReduceSum, or do it outside of the model",
    "bincount": "count with comparisons and ReduceSum, or do it outside of the model",
    "unique": "gives as many values as it finds; end the model before it, or use topk",
    "nms": "end the model before it: the boxes are picked outside",
}
"""By a part of the operator's name."""


def untranslatable(program: torch.export.ExportedProgram, failure: Exception) -> list[Unsupported]:
    """Operators without a translation, each once with the names of its nodes, and the one that made the exporter stop."""
    found: dict[str, tuple[list[str], str]] = {}
    for node, problem in _without_translation(program):
        found.setdefault(_name(node.target), ([], problem))[0].append(_place(node))
    stopped = _STOPPED_AT.search(str(failure))
    if stopped is not None and (name := stopped[1].removesuffix(".default")) not in found:
        cause = _CAUSE.search(str(failure))
        found[name] = ([""], cause[2][:300] if cause else "its translation fails")
    return [_part(name, places, problem) for name, (places, problem) in found.items()]


def _without_translation(program: torch.export.ExportedProgram) -> Iterator[tuple[Any, str]]:
    try:
        from torch.onnx._internal.exporter import _dispatching, _fx_passes, _registration

        registry = _registration.ONNXRegistry.from_torchlib()
        decomposed = _fx_passes.decompose_with_registry(program, registry)
        for node in _fx_passes.remove_assertion_nodes(decomposed.graph_module).graph.nodes:
            if node.op == "call_function" and _name(node.target) != _ORDERING:
                translation, problem = _dispatching.dispatch(node, registry)
                if translation is None:
                    yield node, problem
    # Whatever another torch makes of calls that are not part of its interface.
    except Exception:
        return


def _name(target: Any) -> str:
    return str(target).removesuffix(".default")


def _place(node: Any) -> str:
    """The node and the line of the program that it came from, where the file says so."""
    lines = [line.strip() for line in str(node.meta.get("stack_trace") or "").splitlines() if "File" in line]
    return f"{node.name} ({lines[-1][:120]})" if lines else str(node.name)


def _part(name: str, places: list[str], problem: str) -> Unsupported:
    hint = next((text for part, text in HINTS.items() if part in name), HINT)
    named = tuple(place for place in places if place)[:MAX_PLACES]
    reason = Reason.MODEL_OPERATOR_UNSUPPORTED.value
    return Unsupported("operator", name, len(places), named, reason, problem[:300], hint)
