"""What each ONNX operator does, in torch: the table behind ``graph.py``.

One small function per operator, on tensors only. Semantics are those of opset 13 to 22; where an older opset keeps in
an attribute what a newer one takes as an input, both are read.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - as torch's own documentation has it

from splitmesh.compress.train.graph_calls import Call, Result, Values, get, ints, need
from splitmesh.compress.train.graph_shapes import SHAPES
from splitmesh.compress.train.graph_windows import WINDOWS


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[[Call, Values], Result]:
    return lambda call, values: function(need(call, values, 0))


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Call, Values], Result]:
    return lambda call, values: function(need(call, values, 0), need(call, values, 1))


def _many(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Call, Values], Result]:
    def run(call: Call, values: Values) -> Result:
        result = need(call, values, 0)
        for position in range(1, len(values)):
            result = function(result, need(call, values, position))
        return result

    return run


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _raise_to(a: Tensor, b: Tensor) -> Tensor:
    return torch.pow(a, b).to(a.dtype)


def _batch_norm(call: Call, values: Values) -> Result:
    x, scale, bias, mean, variance = (need(call, values, position) for position in range(5))
    return F.batch_norm(x, mean, variance, scale, bias, False, 0.0, call.attributes.get("epsilon", 1e-5))


def _layer_norm(call: Call, values: Values) -> Result:
    x, scale, bias = need(call, values, 0), need(call, values, 1), get(values, 2)
    axis = call.attributes.get("axis", -1) % x.ndim
    axes = tuple(range(axis, x.ndim))
    mean = x.mean(axes, keepdim=True)
    spread = ((x - mean) ** 2).mean(axes, keepdim=True)
    inverse = torch.rsqrt(spread + call.attributes.get("epsilon", 1e-5))
    result = (x - mean) * inverse * scale
    return result if bias is None else result + bias, mean, inverse


def _clip(call: Call, values: Values) -> Result:
    x, low, high = need(call, values, 0), get(values, 1), get(values, 2)
    low = low if low is not None else _constant_like(x, call.attributes.get("min"))
    high = high if high is not None else _constant_like(x, call.attributes.get("max"))
    x = x if low is None else torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


def _constant_like(x: Tensor, value: float | None) -> Tensor | None:
    return None if value is None else torch.tensor(value, dtype=x.dtype)


def _hard_sigmoid(call: Call, values: Values) -> Result:
    x = need(call, values, 0)
    slope, shift = float(call.attributes.get("alpha", 0.2)), float(call.attributes.get("beta", 0.5))
    return (slope * x + shift).clamp(0, 1)


def _gelu(call: Call, values: Values) -> Result:
    return F.gelu(need(call, values, 0), approximate=call.text("approximate", "none"))


def _softmax(function: Callable[..., Tensor]) -> Callable[[Call, Values], Result]:
    def run(call: Call, values: Values) -> Result:
        x = need(call, values, 0)
        if call.opset >= 13:
            return function(x, dim=call.attributes.get("axis", -1))
        axis = call.attributes.get("axis", 1) % x.ndim
        return function(x.flatten(axis), dim=-1).reshape(x.shape)

    return run


def _global(function: Callable[..., Tensor]) -> Callable[[Call, Values], Result]:
    def run(call: Call, values: Values) -> Result:
        x = need(call, values, 0)
        return function(x, dim=tuple(range(2, x.ndim)), keepdim=True)

    return run


def _reduce(function: Callable[..., Tensor]) -> Callable[[Call, Values], Result]:
    def run(call: Call, values: Values) -> Result:
        x, axes = need(call, values, 0), ints(call, values, 1, "axes")
        if not axes:
            if call.attributes.get("noop_with_empty_axes", 0):
                return x
            axes = list(range(x.ndim))
        return function(x, dim=tuple(axes), keepdim=bool(call.attributes.get("keepdims", 1)))

    return run


def _gemm(call: Call, values: Values) -> Result:
    a, b, c = need(call, values, 0), need(call, values, 1), get(values, 2)
    a = a.T if call.attributes.get("transA", 0) else a
    b = b.T if call.attributes.get("transB", 0) else b
    result = float(call.attributes.get("alpha", 1.0)) * (a @ b)
    return result if c is None else result + float(call.attributes.get("beta", 1.0)) * c


def _along(call: Call, x: Tensor, value: Tensor) -> Tensor:
    """Scales along the operator's axis, ready to be multiplied with ``x``."""
    if value.numel() == 1:
        return value.reshape(())
    if call.attributes.get("block_size", 0):
        raise call.refuse("scales per block")
    shape = [1] * x.ndim
    shape[call.attributes.get("axis", 1)] = -1
    return value.reshape(shape)


_RANGES = {torch.uint8: (0, 255), torch.int8: (-128, 127)}


def _quantise(call: Call, values: Values) -> Result:
    """Rounded and clipped in float, the type left as it is: a gradient passes as if only the clipping had happened."""
    x, scale, zero = need(call, values, 0), need(call, values, 1), get(values, 2)
    low, high = _RANGES[zero.dtype if zero is not None else torch.uint8]
    shift = torch.zeros(()) if zero is None else _along(call, x, zero).to(x.dtype)
    exact = x / _along(call, x, scale) + shift
    rounded = exact + (torch.round(x / _along(call, x, scale)) + shift - exact).detach()
    return rounded.clamp(low, high)


def _dequantise(call: Call, values: Values) -> Result:
    x, scale, zero = need(call, values, 0), need(call, values, 1), get(values, 2)
    shift = torch.zeros(()) if zero is None else _along(call, x, zero).to(scale.dtype)
    return (x.to(scale.dtype) - shift) * _along(call, x, scale)


def _prelu(call: Call, values: Values) -> Result:
    x, slope = need(call, values, 0), need(call, values, 1)
    return torch.where(x < 0, x * slope, x)


def _instance_norm(call: Call, values: Values) -> Result:
    x, scale, bias = (need(call, values, position) for position in range(3))
    return F.instance_norm(x, weight=scale, bias=bias, eps=call.attributes.get("epsilon", 1e-5))


def _where(call: Call, values: Values) -> Result:
    return torch.where(need(call, values, 0), need(call, values, 1), need(call, values, 2))


def _leaky(call: Call, values: Values) -> Result:
    return F.leaky_relu(need(call, values, 0), call.attributes.get("alpha", 0.01))


def _elu(call: Call, values: Values) -> Result:
    return F.elu(need(call, values, 0), call.attributes.get("alpha", 1.0))


OPERATORS: dict[str, Callable[[Call, Values], Result]] = {
    **WINDOWS,
    **SHAPES,
    "Abs": _unary(torch.abs),
    "Add": _binary(torch.add),
    "And": _binary(torch.logical_and),
    "BatchNormalization": _batch_norm,
    "Ceil": _unary(torch.ceil),
    "Clip": _clip,
    "Cos": _unary(torch.cos),
    "DequantizeLinear": _dequantise,
    "Div": _binary(_divide),
    "Dropout": _unary(lambda x: x),
    "Elu": _elu,
    "Equal": _binary(torch.eq),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Floor": _unary(torch.floor),
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": _global(torch.mean),
    "GlobalMaxPool": _global(torch.amax),
    "Greater": _binary(torch.gt),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _unary(F.hardswish),
    "Identity": _unary(lambda x: x),
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": _leaky,
    "Less": _binary(torch.lt),
    "Log": _unary(torch.log),
    "LogSoftmax": _softmax(F.log_softmax),
    "MatMul": _binary(torch.matmul),
    "Max": _many(torch.maximum),
    "Min": _many(torch.minimum),
    "Mish": _unary(F.mish),
    "Mul": _binary(torch.mul),
    "Neg": _unary(torch.neg),
    "Not": _unary(torch.logical_not),
    "Or": _binary(torch.logical_or),
    "PRelu": _prelu,
    "Pow": _binary(_raise_to),
    "QuantizeLinear": _quantise,
    "Reciprocal": _unary(torch.reciprocal),
    "ReduceL2": _reduce(lambda x, dim, keepdim: x.square().sum(dim, keepdim=keepdim).sqrt()),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "ReduceMin": _reduce(torch.amin),
    "ReduceSum": _reduce(torch.sum),
    "Relu": _unary(torch.relu),
    "Round": _unary(torch.round),
    "Sigmoid": _unary(torch.sigmoid),
    "Sin": _unary(torch.sin),
    "Softmax": _softmax(F.softmax),
    "Softplus": _unary(F.softplus),
    "Sqrt": _unary(torch.sqrt),
    "Sub": _binary(torch.sub),
    "Sum": _many(torch.add),
    "Tanh": _unary(torch.tanh),
    "Where": _where,
}
"""By the operator's name."""
