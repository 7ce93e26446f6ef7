"""Everything in an ONNX file that :mod:`splitmesh.model.load` refuses, not the first thing only.

Groups what breaks one rule in one way, names the nodes, and says what a person can do about it. What lies behind an
unsupported operator cannot be told, since shapes end there; it is counted, not guessed at. For a process with limits, as
loading is: the file is as untrusted.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx

from splitmesh.errors import MeshError, Reason
from splitmesh.model import refusals
from splitmesh.model.functions import inlined
from splitmesh.model.limits import DEFAULT_LIMITS, ModelLimits
from splitmesh.model.load import complete_outputs, load_model, parse
from splitmesh.model.operators import canonical_domain, type_name
from splitmesh.model.refusals import Refusal, where
from splitmesh.model.shapes import fixed_copy, settle
from splitmesh.model.unsupported_hints import hint_for
from splitmesh.model.walk import bodies, every_node, reads

log = logging.getLogger(__name__)

MAX_PARTS = 1000
"""Most lines of a report; a file of another kind altogether can break as many rules as it has nodes."""
MAX_PLACES = 20
"""Most nodes named for one line."""


@dataclass(frozen=True, slots=True)
class Unsupported:
    """One part of a model that cannot be taken, wherever it occurs."""

    kind: str
    """As :attr:`Refusal.kind`; of foreign formats: ``operator``."""
    name: str
    count: int
    where: tuple[str, ...]
    """Names of the first nodes."""
    reason: str
    """Code of :class:`splitmesh.errors.Reason`."""
    problem: str
    hint: str
    """What to do."""


def unsupported_parts(data: bytes, limits: ModelLimits = DEFAULT_LIMITS) -> tuple[Unsupported, ...]:
    """All that keeps the file from being loaded, in the order of the rules; empty exactly when ``load_model`` takes it."""
    try:
        model = parse(data, limits)
    except MeshError as error:
        return (_whole(error),)
    found = list(grouped(_refusals(model, limits)))[:MAX_PARTS]
    try:
        load_model(data, limits)
    except MeshError as error:
        return tuple(found) or (_whole(error),)
    return ()


def grouped(found: Iterable[Refusal]) -> Iterator[Unsupported]:
    """One line for the same rule, kind and name; tensors that differ in name only are told one by one."""
    groups: dict[tuple[Reason, str, str], list[Refusal]] = {}
    for one in found:
        groups.setdefault((one.reason, one.kind, one.name), []).append(one)
    for (reason, kind, name), group in groups.items():
        places = list(dict.fromkeys(one.where for one in group if one.where))
        yield Unsupported(
            kind, name, len(group), tuple(places[:MAX_PLACES]), reason.value, group[0].message, hint_for(group[0])
        )


def _whole(error: MeshError) -> Unsupported:
    only = Refusal(error.reason, "model", "", error.message)
    return Unsupported("model", "", 1, (), error.reason.value, error.message, hint_for(only))


def _refusals(model: onnx.ModelProto, limits: ModelLimits) -> Iterator[Refusal]:
    operators = list(refusals.operators(model))
    unsafe = [*refusals.external_data(model), *refusals.counts(model, limits)]
    unsafe += [*refusals.torn_tensors(model), *refusals.opset(model)]
    yield from unsafe
    yield from operators
    yield from refusals.inputs_and_outputs(model)
    # Whoever infers shapes reads constants, and would follow one into another file.
    if unsafe:
        return
    try:
        yield from _broken_nodes(model, {one.where for one in operators})
        flat = inlined(model, limits.max_nodes)
        yield from refusals.control_flow(flat)
        yield from _unknown_sizes(flat, operators, limits)
    except MemoryError:
        raise
    except MeshError as error:
        # Behind what was told already these are its consequences; alone, load_model raises the same.
        if not operators:
            yield Refusal(error.reason, "model", "", error.message)
    except Exception:  # inference meets here what load_model would have refused before: what was told stays told
        log.debug("the search for unsupported parts ended early", exc_info=True)


def _broken_nodes(model: onnx.ModelProto, told: set[str]) -> Iterator[Refusal]:
    """Attributes and inputs that ONNX does not know for an operator of this opset: its checker stops at the first."""
    context = onnx.checker.C.CheckerContext()
    context.ir_version = model.ir_version
    used = max(entry.version for entry in model.opset_import if canonical_domain(entry.domain) == "")
    context.opset_imports = {"": used}
    for node in every_node(model):
        if where(node) in told or next(bodies(node), None) is not None or canonical_domain(node.domain):
            continue
        try:
            onnx.checker.check_node(node, context)
        except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
            detail = str(error).strip().partition("\n")[0][:300]
            yield Refusal(Reason.MODEL_CORRUPT, "attribute", type_name(node), detail, where(node))


def _unknown_sizes(model: onnx.ModelProto, operators: list[Refusal], limits: ModelLimits) -> Iterator[Refusal]:
    refused = {one.name for one in operators}
    behind = _behind(model, refused)
    if not refused:
        complete_outputs(model)
    copy = fixed_copy(model, batch=1, other=limits.assumed_dim)
    for one in refusals.sizes(copy, settle(copy), limits):
        if one.metadata.get("tensor", one.name) not in behind:
            yield one


def _behind(model: onnx.ModelProto, refused: set[str]) -> set[str]:
    """Tensors that an operator of these gives, or that are made of such; nodes come in the order they run."""
    found: set[str] = set()
    for node in model.graph.node:
        inside = any(type_name(inner) in refused for inner in _all(node))
        if inside or any(name in found for name in reads(node)):
            found.update(name for name in node.output if name)
    return found


def _all(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    yield node
    for body in bodies(node):
        for inner in body.node:
            yield from _all(inner)
