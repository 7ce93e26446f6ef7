"""Operators that look at neighbouring pixels, in torch: convolution, pooling, padding, resizing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - as torch's own documentation has it

from splitmesh.compress.train.graph_calls import Call, Result, Values, get, ints, need


def _pads(call: Call, sizes: Sequence[int], kernel: Sequence[int], fill: float, x: Tensor) -> Tensor:
    """The input of a convolution or pooling with its padding written out (both ends may differ)."""
    count = len(kernel)
    strides = call.attributes.get("strides", [1] * count)
    dilations = call.attributes.get("dilations", [1] * count)
    auto = call.text("auto_pad", "NOTSET")
    if auto in ("NOTSET", "VALID"):
        pads = list(call.attributes.get("pads", [0] * 2 * count)) if auto == "NOTSET" else [0] * 2 * count
    else:
        totals = [
            max(0, (math.ceil(size / stride) - 1) * stride + (edge - 1) * dilation + 1 - size)
            for size, stride, edge, dilation in zip(sizes, strides, kernel, dilations, strict=True)
        ]
        less, more = [total // 2 for total in totals], [total - total // 2 for total in totals]
        pads = [*less, *more] if auto == "SAME_UPPER" else [*more, *less]
    if not any(pads):
        return x
    ends = [pad for axis in reversed(range(count)) for pad in (pads[axis], pads[axis + count])]
    return F.pad(x, ends, value=fill)


def _conv(call: Call, values: Values) -> Result:
    x, weight, bias = need(call, values, 0), need(call, values, 1), get(values, 2)
    kernel = weight.shape[2:]
    run: Callable[..., Tensor] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(kernel)]
    ones = [1] * len(kernel)
    return run(
        _pads(call, x.shape[2:], kernel, 0.0, x),
        weight,
        bias,
        stride=call.attributes.get("strides", ones),
        dilation=call.attributes.get("dilations", ones),
        groups=call.attributes.get("group", 1),
    )


def _conv_transpose(call: Call, values: Values) -> Result:
    x, weight, bias = need(call, values, 0), need(call, values, 1), get(values, 2)
    count = weight.ndim - 2
    if call.text("auto_pad", "NOTSET") != "NOTSET" or "output_shape" in call.attributes:
        raise call.refuse("padding chosen by the operator")
    pads = list(call.attributes.get("pads", [0] * 2 * count))
    run: Callable[..., Tensor] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[count]
    full = run(
        x,
        weight,
        bias,
        stride=call.attributes.get("strides", [1] * count),
        dilation=call.attributes.get("dilations", [1] * count),
        groups=call.attributes.get("group", 1),
    )
    extra = list(call.attributes.get("output_padding", [0] * count))
    # Padding of a transposed convolution takes away from its result; a negative one adds zeros and then the bias.
    ends = [edge for axis in reversed(range(count)) for edge in (-pads[axis], extra[axis] - pads[axis + count])]
    if any(end > 0 for end in ends):
        raise call.refuse("output padding beyond the pads")
    return F.pad(full, ends) if any(ends) else full


def _max_pool(call: Call, values: Values) -> Result:
    x, kernel = need(call, values, 0), call.attributes["kernel_shape"]
    if len(call.outputs) > 1:
        raise call.refuse("giving indices")
    run: Callable[..., Tensor] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[len(kernel)]
    ones = [1] * len(kernel)
    strides = call.attributes.get("strides", ones)
    dilations = call.attributes.get("dilations", ones)
    padded = _pads(call, x.shape[2:], kernel, -math.inf, x)
    rounded_up = bool(call.attributes.get("ceil_mode", 0))
    return run(padded, kernel, stride=strides, dilation=dilations, ceil_mode=rounded_up)


def _average_pool(call: Call, values: Values) -> Result:
    x, kernel = need(call, values, 0), call.attributes["kernel_shape"]
    if call.attributes.get("ceil_mode", 0) or any(d != 1 for d in call.attributes.get("dilations", [1])):
        raise call.refuse("rounding up or dilating")
    run: Callable[..., Tensor] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[len(kernel)]
    strides = call.attributes.get("strides", [1] * len(kernel))
    padded = _pads(call, x.shape[2:], kernel, 0.0, x)
    result = run(padded, kernel, stride=strides)
    if call.attributes.get("count_include_pad", 0) or padded is x:
        return result
    inside = _pads(call, x.shape[2:], kernel, 0.0, torch.ones_like(x[:1, :1]))
    return result / run(inside, kernel, stride=strides)


def _pad(call: Call, values: Values) -> Result:
    x, pads = need(call, values, 0), ints(call, values, 1, "pads") or []
    fill = get(values, 2)
    axes = ints(call, values, 3, "axes") or list(range(len(pads) // 2))
    before, after = [0] * x.ndim, [0] * x.ndim
    for position, axis in enumerate(axes):
        before[axis], after[axis] = pads[position], pads[position + len(axes)]
    ends = [edge for axis in reversed(range(x.ndim)) for edge in (before[axis], after[axis])]
    mode = call.text("mode", "constant")
    if mode == "constant":
        return F.pad(x, ends, value=float(fill) if fill is not None else call.attributes.get("value", 0.0))
    if mode not in ("reflect", "edge") or any(ends[2 * (x.ndim - 2) :]):
        raise call.refuse(f"padding {mode!r} there")
    return F.pad(x, ends[: 2 * (x.ndim - 2)], mode="reflect" if mode == "reflect" else "replicate")


def _resize(call: Call, values: Values) -> Result:
    x, scales, sizes = need(call, values, 0), get(values, 2), get(values, 3)
    if call.kind == "Upsample" or len(values) == 2:
        scales = get(values, 1)
    if call.attributes.get("axes") or call.attributes.get("antialias", 0):
        raise call.refuse("resizing some axes, or smoothly")
    if sizes is not None:
        target = [int(size) for size in sizes.tolist()]
        ratios = [after / before for after, before in zip(target, x.shape, strict=True)]
    elif scales is not None and scales.numel():
        ratios = [float(scale) for scale in scales.tolist()]
        target = [math.floor(size * ratio) for size, ratio in zip(x.shape, ratios, strict=True)]
    else:
        raise call.refuse("neither scales nor sizes")
    mode = call.text("mode", "nearest")
    if mode not in ("nearest", "linear"):
        raise call.refuse(f"mode {mode!r}")
    for axis, (size, ratio) in enumerate(zip(target, ratios, strict=True)):
        if size != x.shape[axis]:
            places = _places(call, x.shape[axis], size, ratio)
            x = _nearest(call, x, axis, places) if mode == "nearest" else _linear(x, axis, places)
    return x


def _places(call: Call, before: int, after: int, ratio: float) -> Tensor:
    """Where each of the new pixels lies among the old ones."""
    where = call.text("coordinate_transformation_mode", "half_pixel" if call.kind == "Resize" else "asymmetric")
    places = torch.arange(after, dtype=torch.float64)
    if where == "half_pixel" or (where == "pytorch_half_pixel" and after > 1):
        return (places + 0.5) / ratio - 0.5
    if where == "asymmetric":
        return places / ratio
    if where == "align_corners":
        return places * (before - 1) / max(1, after - 1)
    raise call.refuse(f"coordinates {where!r}")


def _nearest(call: Call, x: Tensor, axis: int, places: Tensor) -> Tensor:
    rounding = call.text("nearest_mode", "round_prefer_floor" if call.kind == "Resize" else "floor")
    roundings: dict[str, Callable[[Tensor], Tensor]] = {
        "floor": torch.floor,
        "ceil": torch.ceil,
        "round_prefer_floor": lambda value: torch.ceil(value - 0.5),
        "round_prefer_ceil": lambda value: torch.floor(value + 0.5),
    }
    return x.index_select(axis, roundings[rounding](places).clamp(0, x.shape[axis] - 1).long())


def _linear(x: Tensor, axis: int, places: Tensor) -> Tensor:
    last = x.shape[axis] - 1
    places = places.clamp(0, last)
    before = places.floor().long()
    share = (places - before).to(x.dtype).reshape([-1 if number == axis else 1 for number in range(x.ndim)])
    after = (before + 1).clamp(max=last)
    return torch.lerp(x.index_select(axis, before), x.index_select(axis, after), share)


def _depth_to_space(call: Call, values: Values) -> Result:
    x, block = need(call, values, 0), int(call.attributes["blocksize"])
    if call.text("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, block)
    n, c, h, w = x.shape
    parts = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, c // block**2, h * block, w * block)


WINDOWS: dict[str, Callable[[Call, Values], Result]] = {
    "AveragePool": _average_pool,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "DepthToSpace": _depth_to_space,
    "MaxPool": _max_pool,
    "Pad": _pad,
    "Resize": _resize,
    "Upsample": _resize,
}
"""By the operator's name."""
