"""Operators that move values about without changing them, in torch; shapes travel as int64 tensors."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from onnx import helper, numpy_helper

from splitmesh.compress.train.graph_calls import Call, Result, Values, ints, need


def _flatten(call: Call, values: Values) -> Result:
    x, axis = need(call, values, 0), call.attributes.get("axis", 1)
    return x.reshape(math.prod(x.shape[: axis % x.ndim if axis < 0 else axis]), -1)


def _reshape(call: Call, values: Values) -> Result:
    x, shape = need(call, values, 0), ints(call, values, 1, "shape") or []
    kept = bool(call.attributes.get("allowzero", 0))
    return x.reshape([x.shape[axis] if size == 0 and not kept else size for axis, size in enumerate(shape)])


def _transpose(call: Call, values: Values) -> Result:
    x = need(call, values, 0)
    return x.permute(call.attributes.get("perm", list(reversed(range(x.ndim)))))


def _squeeze(call: Call, values: Values) -> Result:
    x, axes = need(call, values, 0), ints(call, values, 1, "axes")
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def _unsqueeze(call: Call, values: Values) -> Result:
    x, axes = need(call, values, 0), ints(call, values, 1, "axes") or []
    for axis in sorted(axis % (x.ndim + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _concat(call: Call, values: Values) -> Result:
    return torch.cat([need(call, values, position) for position in range(len(values))], dim=call.attributes["axis"])


def _split(call: Call, values: Values) -> Result:
    x, sizes, axis = need(call, values, 0), ints(call, values, 1, "split"), call.attributes.get("axis", 0)
    if sizes is None:
        each = math.ceil(x.shape[axis] / len(call.outputs))
        return torch.split(x, each, dim=axis)
    return torch.split(x, sizes, dim=axis)


def _slice(call: Call, values: Values) -> Result:
    x = need(call, values, 0)
    starts, ends = ints(call, values, 1, "starts") or [], ints(call, values, 2, "ends") or []
    axes = ints(call, values, 3, "axes") or list(range(len(starts)))
    steps = ints(call, values, 4, "steps") or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = x.shape[axis]
        # Python's own rules for a slice are ONNX's, apart from an end far below zero that means "to the first".
        rows = range(size)[slice(start, None if step < 0 and end < -size else end, step)]
        if step == 1:
            x = x.narrow(axis, rows.start, len(rows))
        else:
            x = x.index_select(axis, torch.tensor(list(rows), dtype=torch.int64))
    return x


def _gather(call: Call, values: Values) -> Result:
    x, rows = need(call, values, 0), need(call, values, 1).long()
    axis = call.attributes.get("axis", 0) % x.ndim
    rows = torch.where(rows < 0, rows + x.shape[axis], rows)
    taken = x.index_select(axis, rows.reshape(-1))
    return taken.reshape([*x.shape[:axis], *rows.shape, *x.shape[axis + 1 :]])


def _shape(call: Call, values: Values) -> Result:
    dims = list(need(call, values, 0).shape)
    return torch.tensor(dims[call.attributes.get("start", 0) : call.attributes.get("end")], dtype=torch.int64)


def _torch_type(onnx_type: int) -> torch.dtype:
    return torch.from_numpy(np.zeros(1, helper.tensor_dtype_to_np_dtype(onnx_type))).dtype


def _cast(call: Call, values: Values) -> Result:
    return need(call, values, 0).to(_torch_type(call.attributes["to"]))


def _constant(call: Call, values: Values) -> Result:
    given = call.attributes
    if "value" in given:
        return torch.from_numpy(np.array(numpy_helper.to_array(given["value"])))
    for name, dtype in (("value_float", torch.float32), ("value_floats", torch.float32)):
        if name in given:
            return torch.tensor(given[name], dtype=dtype)
    for name in ("value_int", "value_ints"):
        if name in given:
            return torch.tensor(given[name], dtype=torch.int64)
    raise call.refuse("a constant that is no tensor")


def _constant_of_shape(call: Call, values: Values) -> Result:
    shape = [int(size) for size in need(call, values, 0).tolist()]
    filled = call.attributes.get("value")
    value = torch.zeros(1) if filled is None else torch.from_numpy(np.array(numpy_helper.to_array(filled)))
    return value.reshape(()).expand(shape).clone()


def _expand(call: Call, values: Values) -> Result:
    x, shape = need(call, values, 0), ints(call, values, 1, "shape") or []
    return x.expand(np.broadcast_shapes(tuple(x.shape), tuple(shape)))


def _range(call: Call, values: Values) -> Result:
    start, end, step = (need(call, values, position).item() for position in range(3))
    return torch.arange(start, end, step, dtype=need(call, values, 0).dtype)


SHAPES: dict[str, Callable[[Call, Values], Result]] = {
    "Cast": _cast,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Range": _range,
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
"""By the operator's name."""
