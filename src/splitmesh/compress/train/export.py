"""A torch module as an ONNX model, compared with the module before anybody gets it.

Knows nothing of what was trained. The model holds operators and weights only: the exporter's notes about source files
and call stacks are removed, so the same module gives the same bytes on every machine.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Sequence
from contextlib import closing

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from splitmesh.errors import MeshError, Reason
from splitmesh.model.load import load_model
from splitmesh.runtime import open_session
from splitmesh.tensor.spec import Array

OPSET = 18
"""The exporter's own: nothing is converted down afterwards."""

IR_VERSION = 10
"""Older runtimes read it too."""

TOLERANCE = 1e-4
"""Largest difference from torch, as a share of an output's largest magnitude."""

_BATCHES = (2, 3)
"""Beside the example's own: compared where the batch varies."""


def export_module(
    module: nn.Module,
    inputs: Sequence[Tensor],
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic_batch: bool = True,
) -> onnx.ModelProto:
    """The module in evaluation mode as a checked ONNX model, opset ``OPSET``.

    Args:
        module: takes and returns float32 tensors ``[batch, ...]``; left in the mode it was in.
        inputs: an example each; any batch.
        input_names: of the model's inputs, in the module's order.
        output_names: of its outputs.
        dynamic_batch: the first dimension of every input varies, by the name ``batch``; False: fixed as in ``inputs``.

    Raises MeshError MODEL_OPERATOR_UNSUPPORTED when torch cannot export it or it uses operators that are not allowed,
    SPLIT_NOT_EQUAL when the model answers unlike the module.
    """
    training = module.training
    module.eval()
    try:
        # Torch takes a batch of 1 for a constant.
        examples = [_of_batch(value, max(2, len(value))) if dynamic_batch else value for value in inputs]
        made = _exported(module, examples, input_names, output_names, dynamic_batch)
        model = _plain(made)
        load_model(model.SerializeToString())
        _compare(module, model, inputs, dynamic_batch)
    finally:
        module.train(training)
    return model


def _of_batch(example: Tensor, batch: int) -> Tensor:
    """The example's samples over and over, ``batch`` of them."""
    return example.detach()[torch.arange(batch) % len(example)]


def _exported(
    module: nn.Module,
    inputs: Sequence[Tensor],
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic_batch: bool,
) -> onnx.ModelProto:
    shapes = None
    if dynamic_batch:
        batch = torch.export.Dim("batch", min=1, max=1 << 20)
        shapes = tuple({0: batch} for _ in inputs)
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    # It misses torchvision, which is not needed, and prints where it stands.
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                tuple(inputs),
                dynamo=True,
                input_names=list(input_names),
                output_names=list(output_names),
                opset_version=OPSET,
                dynamic_shapes=shapes,
                verbose=False,
            )
    # Whatever torch makes of a module that it cannot trace; its first line says what.
    except Exception as error:
        line = next(iter(str(error).strip().splitlines()), "")[:200]
        raise MeshError(
            Reason.MODEL_OPERATOR_UNSUPPORTED, f"torch cannot export the module: {type(error).__name__}: {line}"
        ) from error
    finally:
        logger.setLevel(level)
    if program is None:
        raise MeshError(Reason.MODEL_OPERATOR_UNSUPPORTED, "torch made no ONNX program of the module")
    model: onnx.ModelProto = program.model_proto
    return model


def _plain(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without notes: they name files of this machine, and change from run to run."""
    del model.metadata_props[:]
    model.ir_version = min(model.ir_version, IR_VERSION)
    model.producer_name = model.producer_version = model.doc_string = ""
    graph = model.graph
    graph.name, graph.doc_string = "graph", ""
    del graph.metadata_props[:]
    for entries in (graph.node, graph.input, graph.output, graph.value_info, graph.initializer):
        for entry in entries:
            entry.doc_string = ""
            del entry.metadata_props[:]
    return model


def _compare(module: nn.Module, model: onnx.ModelProto, inputs: Sequence[Tensor], dynamic_batch: bool) -> None:
    names = [value.name for value in model.graph.input]
    sizes = {len(inputs[0]), *(_BATCHES if dynamic_batch else ())}
    with closing(open_session(model.SerializeToString())) as session:
        for size in sorted(sizes):
            examples = [_of_batch(value, size) for value in inputs]
            with torch.no_grad():
                wanted = module(*examples)
            feeds = {name: value.numpy() for name, value in zip(names, examples, strict=True)}
            got = session.run(feeds)
            leaves = [wanted] if isinstance(wanted, Tensor) else list(wanted)
            for spec, want in zip(session.outputs, leaves, strict=True):
                _require_equal(spec.name, want.numpy(), got[spec.name])


def _require_equal(name: str, want: Array, got: Array) -> None:
    if want.shape != got.shape:
        raise MeshError(
            Reason.SPLIT_NOT_EQUAL, f"{name!r} is {list(got.shape)} in ONNX, torch gives {list(want.shape)}"
        )
    gap = float(np.abs(want.astype(np.float64) - got.astype(np.float64)).max(initial=0.0))
    size = float(np.abs(want).max(initial=0.0)) or 1.0
    # Written so that a difference that is not a number fails too.
    if not gap <= TOLERANCE * size:
        raise MeshError(
            Reason.SPLIT_NOT_EQUAL, f"{name!r} differs from torch by {gap / size:.3g} of its largest magnitude"
        )
