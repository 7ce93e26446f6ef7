"""The networks of a trained bottleneck: encoder, decoder, and the prior that prices a code in bits while training.

The encoder is what the edge pays for: two thin layers, striding where the features are large. The decoder runs in the
cloud and may be wider. A code's unit is the wire's rounding step, so its scale is 1 and its zero point
:data:`ZERO_POINT`. Knows nothing of models, data or training.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as torch's own documentation has it

from splitmesh.errors import MeshError, Reason

ZERO_POINT = 128
LOW, HIGH = -128, 127
"""Of a rounded code before the zero point is added."""

THIN, MOST_WIDE = 32, 128
"""Channels inside the encoder at most, inside the decoder at most."""

_LARGE, _MIDDLE = 24, 12
"""Sides from which on the encoder strides twice and once."""

_LEAST_LIKELIHOOD = 1e-9
STARTING_SPREAD = 2.0
"""Standard deviation of an untrained code: several levels, none of them clipped."""


def strides_for(shape: Sequence[int]) -> tuple[int, int]:
    """Of the encoder's two layers, for features of one sample ``[C, H, W]``, ``[T, C]`` or ``[F]``."""
    if len(shape) != 3 or min(shape[1:]) < _MIDDLE:
        return 1, 1
    return (2, 2) if min(shape[1:]) >= _LARGE else (2, 1)


def channel_axis(shape: Sequence[int]) -> int:
    """Where the channels are in a batch of such features: axis 1, for tokens the last."""
    return 2 if len(shape) == 2 else 1


def _layer(shape: Sequence[int], inputs: int, outputs: int, stride: int) -> nn.Module:
    if len(shape) == 3:
        kernel = 3 if stride > 1 else 1
        return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)
    return nn.Linear(inputs, outputs)


class Encoder(nn.Module):
    """Features ``[n, C, H, W]``, ``[n, T, C]`` or ``[n, F]`` to a code ``[n, channels, h, w]``, ``[n, T, channels]``, ``[n,
    channels]``."""

    def __init__(self, shape: Sequence[int], channels: int, spread: Tensor) -> None:
        """``shape`` of one sample's features; ``spread``: their standard deviation per channel, ``[C]``."""
        super().__init__()
        inputs = shape[channel_axis(shape) - 1]
        hidden = max(channels, min(THIN, inputs))
        strides = strides_for(shape)
        self.spread: Tensor
        self.register_buffer("spread", spread.reshape(-1, *[1] * (len(shape) - channel_axis(shape))).clone())
        self.first = _layer(shape, inputs, hidden, strides[0])
        self.last = _layer(shape, hidden, channels, strides[1])

    def forward(self, features: Tensor) -> Tensor:
        """The code before rounding."""
        code: Tensor = self.last(torch.relu(self.first(features / self.spread)))
        return code

    @torch.no_grad()
    def settle(self, features: Tensor) -> None:
        """Scale the last layer so that these features give codes of a few levels, centred."""
        flat = self(features).movedim(channel_axis(features.shape[1:]), 0).flatten(1)
        gain = STARTING_SPREAD / flat.std(1).clamp(min=1e-6)
        assert isinstance(self.last, (nn.Conv2d, nn.Linear))
        assert self.last.bias is not None
        self.last.weight.mul_(gain.reshape(-1, *[1] * (self.last.weight.ndim - 1)))
        self.last.bias.sub_(flat.mean(1)).mul_(gain)


class Decoder(nn.Module):
    """The way back, to the shape of the features: a projection, a residual block, and steps up where the encoder strode."""

    def __init__(self, shape: Sequence[int], channels: int, mean: Tensor, spread: Tensor, nonnegative: bool) -> None:
        super().__init__()
        outputs = shape[channel_axis(shape) - 1]
        self.sides = tuple(shape[1:]) if len(shape) == 3 else ()
        self.nonnegative = nonnegative
        rest = [1] * (len(shape) - channel_axis(shape))
        self.mean: Tensor
        self.spread: Tensor
        self.register_buffer("mean", mean.reshape(-1, *rest).clone())
        self.register_buffer("spread", spread.reshape(-1, *rest).clone())
        wide = min(MOST_WIDE, max(32, outputs))
        maps = len(shape) == 3
        inner = 3 if maps else 1

        def layer(inputs: int, results: int) -> nn.Module:
            return nn.Conv2d(inputs, results, inner, 1, inner // 2) if maps else nn.Linear(inputs, results)

        self.first = layer(channels, wide)
        self.block = nn.ModuleList([layer(wide, wide), layer(wide, wide)])
        ups = sum(stride > 1 for stride in strides_for(shape))
        self.ups = nn.ModuleList([nn.Conv2d(wide, 4 * wide, 1) for _ in range(ups)])
        self.last = layer(wide, outputs)

    def forward(self, code: Tensor) -> Tensor:
        """Features like those the encoder took."""
        x = torch.relu(self.first(code / STARTING_SPREAD))
        x = torch.relu(x + self.block[1](torch.relu(self.block[0](x))))
        for up in self.ups:
            x = torch.relu(F.pixel_shuffle(up(x), 2))
        if self.ups:
            x = x[:, :, : self.sides[0], : self.sides[1]]
        result: Tensor = self.last(x) * self.spread + self.mean
        return torch.relu(result) if self.nonnegative else result


class Prior(nn.Module):
    """A density per channel, learned: Balle, Minnen, Singh, Hwang and Johnston 2018, appendix 6.1.

    Only for training: what is shipped counts its tables from real codes.
    """

    _FILTERS = (1, 3, 3, 1)

    def __init__(self, channels: int, width: float = 4.0) -> None:
        super().__init__()
        scale = width ** (1 / (len(self._FILTERS) - 1))
        self.matrices, self.biases, self.factors = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()
        for inputs, outputs in zip(self._FILTERS[:-1], self._FILTERS[1:], strict=True):
            start = float(torch.log(torch.expm1(torch.tensor(1 / scale / outputs))))
            self.matrices.append(nn.Parameter(torch.full((channels, outputs, inputs), start)))
            self.biases.append(nn.Parameter(torch.rand(channels, outputs, 1) - 0.5))
            self.factors.append(nn.Parameter(torch.zeros(channels, outputs, 1)))

    def _logit(self, values: Tensor) -> Tensor:
        """Logit of the cumulative distribution of ``[channels, 1, n]``."""
        for number, (matrix, bias, factor) in enumerate(zip(self.matrices, self.biases, self.factors, strict=True)):
            values = F.softplus(matrix) @ values + bias
            if number < len(self.matrices) - 1:
                values = values + torch.tanh(factor) * torch.tanh(values)
        return values

    def bits(self, code: Tensor, width: float, axis: int) -> Tensor:
        """Bits ``[n, channels]`` of codes ``[n, ...]`` with their channels along ``axis``, in bins of this width."""
        channels_first = code.movedim(axis, 0)
        flat = channels_first.reshape(channels_first.shape[0], 1, -1)
        lower, upper = self._logit(flat - width / 2), self._logit(flat + width / 2)
        # On the side where a sigmoid is small, so that differences of two numbers close to 1 do not round to 0.
        sign = -torch.sign(lower + upper).detach()
        likelihood = (torch.sigmoid(sign * upper) - torch.sigmoid(sign * lower)).abs().clamp(min=_LEAST_LIKELIHOOD)
        found = -torch.log2(likelihood).reshape(channels_first.shape)
        return found.movedim(1, 0).reshape(code.shape[0], channels_first.shape[0], -1).sum(2)


class Codec(nn.Module):
    """Encoder, decoder and prior, trained together."""

    def __init__(self, encoder: Encoder, decoder: Decoder, prior: Prior) -> None:
        super().__init__()
        self.encoder, self.decoder, self.prior = encoder, decoder, prior


def make_codec(shape: Sequence[int], channels: int, mean: Tensor, spread: Tensor, nonnegative: bool) -> Codec:
    """Untrained; ``shape`` of one sample's features. MeshError CUT_INVALID for features of another rank than 1 to 3."""
    if not 1 <= len(shape) <= 3:
        raise MeshError(
            Reason.CUT_INVALID, f"a bottleneck needs features of rank 2 to 4 with the batch, got {len(shape) + 1}"
        )
    return Codec(
        Encoder(shape, channels, spread),
        Decoder(shape, channels, mean, spread, nonnegative),
        Prior(channels),
    )


def rounded(code: Tensor, step: int = 1) -> Tensor:
    """As it crosses at this step, in code units; gradients pass as if nothing had been rounded or clipped.

    Halves go away from zero, as the wire's coarser rates have it.
    """
    with torch.no_grad():
        level = code.clamp(LOW, HIGH).round()
        if step > 1:
            level = (torch.sign(level) * torch.floor(level.abs() / step + 0.5) * step).clamp(LOW, HIGH)
    return code + (level - code).detach()


def first_channels(code: Tensor, keep: int, axis: int) -> Tensor:
    """The others at zero."""
    if keep >= code.shape[axis]:
        return code
    kept = torch.zeros(code.shape[axis]).index_fill_(0, torch.arange(keep), 1.0)
    return code * kept.reshape([-1 if number == axis else 1 for number in range(code.ndim)])


def narrowed(codec: Codec, keep: int) -> Codec:
    """A copy whose code has only its first channels; the same answers where the others were always zero."""
    copied = copy.deepcopy(codec)
    last, first = copied.encoder.last, copied.decoder.first
    assert isinstance(last, (nn.Conv2d, nn.Linear))
    assert isinstance(first, (nn.Conv2d, nn.Linear))
    assert last.bias is not None
    last.weight, last.bias = nn.Parameter(last.weight[:keep].detach()), nn.Parameter(last.bias[:keep].detach())
    first.weight = nn.Parameter(first.weight[:, :keep].detach())
    return copied
