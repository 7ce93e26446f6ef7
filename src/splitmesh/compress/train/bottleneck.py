"""A trained bottleneck: encoder and decoder at a cut, taught by the model's own features and answers at a price per bit.

As in Entropic Student (Matsubara, Yang, Levorato and Mandt 2022): first the features themselves are rebuilt, then what
counts is that the tail gives the original model's soft answers (their Kullback-Leibler divergence), each time plus
``rate_weight`` times the bits of the code. Bits are priced by a learned factorised prior (Balle et al. 2018); training
also drops the last channels at random and rounds more coarsely (nested dropout: Rippel, Gelbart and Adams 2014), so that
one encoder serves every rate. Unlike there, the encoder goes on learning in the second phase and the tail does not: one
bottleneck serves one task, and the tail stays the one that was registered.

Knows nothing of the graph surgery that puts the two into head and tail, nor of how codes are entropy coded.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from torch import Tensor

from splitmesh.compress.recipe import Bottleneck
from splitmesh.compress.train.bottleneck_course import Course, Judged, Lap
from splitmesh.compress.train.bottleneck_data import Lesson, gather
from splitmesh.compress.train.bottleneck_export import export_decoder, export_encoder
from splitmesh.compress.train.bottleneck_network import (
    ZERO_POINT,
    Codec,
    channel_axis,
    make_codec,
    narrowed,
    rounded,
)
from splitmesh.compress.train.bottleneck_teacher import Teacher
from splitmesh.compress.train.threads import torch_threads
from splitmesh.compress.work import Context

CHANNELS = 8
"""Of the code where the recipe leaves it open; what never says anything is taken away afterwards."""

LADDER = (2e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
"""Prices of a bit tried one after the other, each from where the one before ended, when the recipe leaves it open."""

FEATURES_SHARE = 0.3
"""Of the epochs, for the first phase."""

_LOOKED_AT = 256
"""Samples that say how features are spread."""


@dataclass(frozen=True, slots=True, eq=False)
class TrainedCode:
    """A trained bottleneck, ready to be put between head and tail."""

    encoder: onnx.ModelProto
    """``features [batch, C, H, W]`` (or ``[batch, T, C]``, ``[batch, F]``) to ``code``, opset ``bottleneck_export.OPSET``."""
    decoder: onnx.ModelProto
    """``code`` to ``features``."""
    scale: float
    """Of the code's rounding to uint8: real = (q - zero_point) * scale."""
    zero_point: int
    channels: int
    """Of the code."""
    axis: int
    """Where they are."""
    rate_weight: float
    """The price of a bit it was trained at."""
    judged: tuple[Judged, ...]
    """Every price tried, on the validation samples."""


def train_codes(head: bytes, tail: bytes, tensor: str, step: Bottleneck, context: Context) -> TrainedCode:
    """Train a bottleneck for the tensor that the head gives and the tail takes.

    Args:
        head: the plain head: the model's inputs to ``tensor``, float32.
        tail: the plain tail: ``tensor`` alone to the model's outputs.
        tensor: its name in both.
        step: channels, epochs and rate weight; 0 channels or weight: chosen on the validation samples.
        context: samples (the hold-out is not touched), folder for features and what is needed to go on after an
            interruption, budget, seed. Gets remarks, and figures named ``rate_weight``, ``validation_bytes``...

    The same samples, seed and number of threads give the same code. A tail that cannot be differentiated is a remark:
    then the features alone are taught, and prices are still chosen by the tail's answers. MeshError CUT_INVALID for
    another cut than one float32 tensor of rank 2 to 4.
    """
    with torch_threads(context.threads):
        lesson = gather(head, tensor, context)
        codec = _untrained(lesson, step, context.samples.seed)
        teacher = Teacher(tail, tensor, lesson, context)
        with closing(teacher):
            laps = _laps(step, teacher.teaches_answers)
            course = Course(codec, lesson, teacher, laps, context, _key(head, tail, tensor, step, context))
            course.run()
        _tell(course, step, context)
        if step.channels == 0:
            codec = narrowed(codec, _speaking(codec, lesson))
        return _exported(codec, lesson, course)


def _laps(step: Bottleneck, answers: bool) -> list[Lap]:
    prices = (step.rate_weight,) if step.rate_weight else LADDER
    first = max(1, round(step.epochs * FEATURES_SHARE))
    each = max(1, (step.epochs - first) // len(prices))
    return [Lap(False, prices[0], first, False), *(Lap(answers, price, each, True) for price in prices)]


def _untrained(lesson: Lesson, step: Bottleneck, seed: int) -> Codec:
    rows = np.unique(np.linspace(0, lesson.training - 1, _LOOKED_AT).astype(np.int64))
    features = torch.from_numpy(lesson.batch(rows)[0])
    axis = channel_axis(lesson.shape)
    flat = features.movedim(axis, 0).flatten(1)
    # A channel that is always the same has no spread of its own.
    spread = flat.std(1).clamp(min=float(features.std()) * 1e-2 + 1e-6)
    channels = step.channels or min(CHANNELS, lesson.shape[axis - 1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        codec = make_codec(lesson.shape, channels, flat.mean(1), spread, bool((features >= 0).all()))
    codec.encoder.settle(features)
    return codec


@torch.no_grad()
def _speaking(codec: Codec, lesson: Lesson) -> int:
    """Channels up to the last one that is not always zero; at least one."""
    codec.eval()
    last = 1
    for start in range(0, len(lesson.answers), 64):
        rows = np.arange(start, min(start + 64, len(lesson.answers)))
        code = rounded(codec.encoder(torch.from_numpy(lesson.batch(rows)[0])))
        speaks = code.abs().movedim(channel_axis(lesson.shape), 0).flatten(1).amax(1) > 0
        last = max(last, int(speaks.nonzero().max()) + 1 if bool(speaks.any()) else 1)
    return last


def _exported(codec: Codec, lesson: Lesson, course: Course) -> TrainedCode:
    example = torch.from_numpy(lesson.batch(np.arange(min(2, len(lesson.answers))))[0])
    codec.eval()
    with torch.no_grad():
        code: Tensor = rounded(codec.encoder(example))
    axis = channel_axis(lesson.shape)
    return TrainedCode(
        encoder=export_encoder(codec.encoder, example),
        decoder=export_decoder(codec.decoder, code),
        scale=1.0,
        zero_point=ZERO_POINT,
        channels=code.shape[axis],
        axis=axis,
        rate_weight=course.chosen.price,
        judged=tuple(course.judged),
    )


def _tell(course: Course, step: Bottleneck, context: Context) -> None:
    chosen = course.chosen
    context.figures["rate_weight"] = chosen.price
    context.figures["validation_bytes"] = chosen.bits / 8
    if chosen.gap.disagreement is not None:
        context.figures["validation_disagreement"] = chosen.gap.disagreement
    if not chosen.within and not step.rate_weight:
        context.remark(
            f"no price of a bit kept the budget on the validation samples; the closest is off by {chosen.gap.size:.3g}"
        )


def _key(head: bytes, tail: bytes, tensor: str, step: Bottleneck, context: Context) -> str:
    samples = context.samples
    settings = [tensor, step.model_dump_json(), context.budget.model_dump_json(), samples.seed, context.threads]
    found = hashlib.sha256(json.dumps(settings).encode())
    for part in (head, tail, context.original, samples.fit.tobytes(), samples.validation.tobytes()):
        found.update(hashlib.sha256(part).digest())
    return found.hexdigest()
