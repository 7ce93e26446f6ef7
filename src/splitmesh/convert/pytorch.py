"""PyTorch programs (.pt2, from ``torch.export.save``) to ONNX.

A program whose batch is fixed is exported again with one that varies, and stays as it was where that fails or changes an answer.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils import _pytree as pytree

from splitmesh.convert.compare import Comparison, Original, compare
from splitmesh.convert.pt2_archive import forbid_unpickling, require_data_only
from splitmesh.convert.pytorch_parts import untranslatable
from splitmesh.errors import MeshError, Reason
from splitmesh.model.unsupported import Unsupported
from splitmesh.tensor.spec import DTYPES, Array, TensorSpec

TRIED_BATCHES = (1, 3)
"""Batch sizes, or multiples of a fixed one, that a varying batch is compared with."""

EXAMPLE_BATCH = 2
"""How many times the fixed batch the example has that shall vary: torch takes 0 and 1 as fixed."""


def convert(
    source: Path, target: Path, tolerance: float, unsupported: list[Unsupported]
) -> tuple[str, Comparison, tuple[str, ...]]:
    """Write ``source`` as ONNX to ``target``: what it was, the comparison, and notes for people.

    Where the conversion fails, ``unsupported`` gets the operators that have no translation.

    Raises MeshError MODEL_CORRUPT for an archive that is more than data, MODEL_OPERATOR_UNSUPPORTED for inputs that are
    not tensors, FIELD_INVALID when the two differ.
    """
    require_data_only(source)
    forbid_unpickling()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = _load(source)
        # Python source out of the file, which a call would run.
        program._guards_code = []
        try:
            comparison, notes = _convert(program, target, tolerance)
        except MeshError:
            raise
        except Exception as failure:
            unsupported += untranslatable(program, failure)
            raise
    return f"PyTorch {torch.__version__} exported program", comparison, notes


def _load(source: Path) -> torch.export.ExportedProgram:
    try:
        return torch.export.load(source)
    # Among them the refusal to unpickle, which advises to trust the file.
    except Exception as error:
        raise MeshError(
            Reason.MODEL_CORRUPT,
            f"torch cannot load {source} as data ({type(error).__name__}): damaged, or with objects",
        ) from error


def _convert(
    program: torch.export.ExportedProgram, target: Path, tolerance: float
) -> tuple[Comparison, tuple[str, ...]]:
    inputs = _inputs(program)
    original = _callable(program, inputs)
    if any(-1 in spec.shape for spec in inputs):
        _write(program, target)
        return compare(original, target, inputs, TRIED_BATCHES, tolerance), ()
    batch = inputs[0].shape[0] if inputs[0].shape else 0
    try:
        _write(_with_varying_batch(program, inputs, batch), target)
        varying = [TensorSpec(spec.name, spec.dtype, (-1, *spec.shape[1:])) for spec in inputs]
        sizes = [batch * times for times in TRIED_BATCHES]
        comparison = compare(_in_turns(original, batch), target, varying, sizes, tolerance)
        return comparison, (f"it was exported for a batch of {batch} only; here its batch varies",)
    # Whatever torch makes of a program that was never meant for another batch; the fixed one is still right.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        _write(program, target)
        comparison = compare(original, target, inputs, (batch,), tolerance)
        return comparison, (f"its batch stays fixed at {batch}: with a varying one, {reason}",)


def _inputs(program: torch.export.ExportedProgram) -> list[TensorSpec]:
    """A dimension that varies is -1."""
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    specs = []
    for name in program.graph_signature.user_inputs:
        value = values.get(str(name))
        dtype = str(value.dtype).removeprefix("torch.") if isinstance(value, torch.Tensor) else type(value).__name__
        if not isinstance(value, torch.Tensor) or dtype not in DTYPES:
            raise MeshError(
                Reason.MODEL_OPERATOR_UNSUPPORTED, f"input {name!r} is {dtype}, not a tensor of a known type"
            )
        specs.append(TensorSpec(str(name), dtype, tuple(dim if isinstance(dim, int) else -1 for dim in value.shape)))
    if not specs:
        raise MeshError(Reason.MODEL_OPERATOR_UNSUPPORTED, "the program has no input")
    return specs


def _callable(program: torch.export.ExportedProgram, inputs: Sequence[TensorSpec]) -> Original:
    module = program.module(check_guards=False)

    def run(feed: Mapping[str, Array]) -> list[Array]:
        leaves = [torch.from_numpy(np.ascontiguousarray(feed[spec.name])) for spec in inputs]
        args, kwargs = pytree.tree_unflatten(leaves, program.call_spec.in_spec)
        with torch.no_grad():
            answer = module(*args, **kwargs)
        return [leaf.numpy() for leaf in pytree.tree_leaves(answer)]

    return run


def _in_turns(original: Original, batch: int) -> Original:
    """A program for ``batch`` samples, on any multiple of them."""

    def run(feed: Mapping[str, Array]) -> list[Array]:
        count = len(next(iter(feed.values())))
        turns = [
            original({name: array[at : at + batch] for name, array in feed.items()}) for at in range(0, count, batch)
        ]
        return [np.concatenate(parts) for parts in zip(*turns, strict=True)]

    return run


def _with_varying_batch(
    program: torch.export.ExportedProgram, inputs: Sequence[TensorSpec], batch: int
) -> torch.export.ExportedProgram:
    if batch == 0 or any(spec.shape[:1] != (batch,) for spec in inputs):
        raise ValueError("its inputs do not share a batch")
    # Neither the shape checks nor the guards of the first export may stand in the way of the second.
    module = program.module(check_guards=False)
    module._forward_pre_hooks.clear()
    leaves = [
        torch.zeros((batch * EXAMPLE_BATCH, *spec.shape[1:]), dtype=getattr(torch, spec.dtype)) for spec in inputs
    ]
    args, kwargs = pytree.tree_unflatten(leaves, program.call_spec.in_spec)
    if kwargs:
        raise ValueError("it takes keyword arguments")
    varies = torch.export.Dim("batch", min=1)
    shapes = pytree.tree_map(lambda _: {0: varies}, args)
    return torch.export.export(module, args, dynamic_shapes=shapes)


def _write(program: torch.export.ExportedProgram, target: Path) -> None:
    made = torch.onnx.export(program, dynamo=True, verbose=False)
    if made is None:
        raise RuntimeError("torch made no ONNX program")
    made.save(str(target), external_data=False)
