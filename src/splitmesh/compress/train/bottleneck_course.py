"""The training of a bottleneck, lap after lap, each from where the one before ended; interrupted, it goes on and ends the
same.

Every epoch leaves one file in the step's folder (numbers as safetensors, the rest as its JSON note); order, noise, rates
and copies of an epoch follow from the seed and the epoch's number, so nothing else needs to be remembered. Knows the
loss, not what it is made for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - as torch's own documentation has it

from splitmesh.compress.train.bottleneck_data import Lesson
from splitmesh.compress.train.bottleneck_network import Codec, channel_axis, first_channels, rounded
from splitmesh.compress.train.bottleneck_teacher import Gap, Teacher
from splitmesh.compress.work import Context

BATCH = 32
FEATURES_LEARNING_RATE, ANSWERS_LEARNING_RATE = 2e-3, 1e-3
PRIOR_FASTER = 10.0
"""The prior learns so many times as fast: what it has not understood yet costs bits that training cannot take away."""

LAST_SHARE = 0.03
"""Of the learning rate, at a lap's end."""

ANCHOR = 0.05
"""Weight of the features' error beside the answers': it keeps few samples from being known by heart."""

WHOLE_CODE = 0.5
"""Share of batches with every channel and the finest step; the others draw both."""
STEPS = (1, 2, 4)

SMALL_BYTES = 64
"""A code of one sample that no higher price is tried on: a frame's own headers are longer, answers would go for nothing."""

_STATE = "course.safetensors"


@dataclass(frozen=True, slots=True)
class Lap:
    """Some epochs at one price."""

    answers: bool
    """Learn from the tail's answers; False: from the features alone."""
    price: float
    """Of a bit."""
    epochs: int
    judged: bool
    """Its end is a candidate for the result."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A lap's end, on the validation samples at the finest rate."""

    price: float
    bits: float
    """Of one sample, by the prior."""
    gap: Gap
    within: bool


class Course:
    """Trains ``codec`` in place."""

    def __init__(
        self, codec: Codec, lesson: Lesson, teacher: Teacher, laps: Sequence[Lap], context: Context, key: str
    ) -> None:
        self._codec, self._lesson, self._teacher, self._laps, self._context = codec, lesson, teacher, laps, context
        self._key = key
        self._axis = channel_axis(lesson.shape)
        fit = len(context.samples.fit)
        self._fit = min(fit, lesson.training)
        self._batch = context.samples.calibration.fixed_batch or max(4, min(BATCH, self._fit // 8))
        self._power = self._feature_power()
        self._optimizer = self._fresh_optimizer()
        self.judged: list[Judged] = []
        self._kept: dict[str, Tensor] = {}
        """Of the last lap within the budget, or of the best there was."""
        self._kept_gap = float("inf")

    def run(self) -> None:
        """All laps; afterwards the codec is that of the dearest price within the budget, or of the smallest gap."""
        lap, epoch = self._resume()
        total = sum(entry.epochs for entry in self._laps)
        while lap < len(self._laps) and not self._enough():
            if epoch == 0:
                self._optimizer = self._fresh_optimizer()
            done = sum(entry.epochs for entry in self._laps[:lap]) + epoch
            self._epoch(lap, epoch, done, total)
            epoch += 1
            if epoch == self._laps[lap].epochs:
                if self._laps[lap].judged:
                    self._judge(self._laps[lap])
                lap, epoch = lap + 1, 0
            self._save(lap, epoch)
        self._codec.load_state_dict(self._kept)

    @property
    def chosen(self) -> Judged:
        """What the codec is now, after :meth:`run`."""
        within = [entry for entry in self.judged if entry.within]
        return within[-1] if within else min(self.judged, key=lambda entry: entry.gap.size)

    def _enough(self) -> bool:
        """A code within the budget is small enough, or two prices in a row were too high after one that was not."""
        verdicts = [entry.within for entry in self.judged]
        small = any(entry.within and entry.bits <= 8 * SMALL_BYTES for entry in self.judged)
        return small or (any(verdicts) and verdicts[-2:] == [False, False])

    def _epoch(self, lap: int, epoch: int, done: int, total: int) -> None:
        plan = self._laps[lap]
        draw = torch.Generator().manual_seed((self._context.samples.seed + 1) * 1_000_003 + done)
        order = torch.randperm(self._fit, generator=draw)
        copies = torch.randint(self._lesson.training // self._fit, (self._fit,), generator=draw)
        rows = (order + copies * self._fit).numpy()
        batches = max(1, self._fit // self._batch)
        high = ANSWERS_LEARNING_RATE if plan.answers else FEATURES_LEARNING_RATE
        self._codec.train()
        for number in range(batches):
            share = (epoch + number / batches) / plan.epochs
            for group in self._optimizer.param_groups:
                group["lr"] = (
                    group["times"] * high * (LAST_SHARE + (1 - LAST_SHARE) * 0.5 * (1 + float(np.cos(np.pi * share))))
                )
            chosen = np.resize(rows[number * self._batch : (number + 1) * self._batch], self._batch)
            features, answers = (torch.from_numpy(value) for value in self._lesson.batch(chosen))
            loss = self._loss(plan, features, answers, draw)
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self._codec.parameters(), 1.0)
            self._optimizer.step()
            text = f"training the bottleneck, epoch {done + 1} of {total}"
            self._context.progress(text, (done + (number + 1) / batches) / total)

    def _loss(self, plan: Lap, features: Tensor, answers: Tensor, draw: torch.Generator) -> Tensor:
        code = self._codec.encoder(features)
        channels, step = code.shape[self._axis], 1
        keep = channels
        if float(torch.rand((), generator=draw)) >= WHOLE_CODE:
            keep = int(torch.randint(1, channels + 1, (), generator=draw))
            step = STEPS[int(torch.randint(len(STEPS), (), generator=draw))]
        noisy = code + step * (torch.rand(code.shape, generator=draw) - 0.5)
        bits = self._codec.prior.bits(noisy, step, self._axis)[:, :keep].sum(1).mean()
        crossed = rounded(code, step) if plan.answers else noisy
        rebuilt = self._codec.decoder(first_channels(crossed, keep, self._axis))
        distortion = F.mse_loss(rebuilt, features) / self._power
        if plan.answers:
            distortion = self._teacher.loss(rebuilt, answers) + ANCHOR * distortion
        return plan.price * bits + distortion

    @torch.no_grad()
    def _judge(self, lap: Lap) -> None:
        self._codec.eval()
        bits, answers = 0.0, []
        rows = np.arange(self._lesson.training, len(self._lesson.answers))
        for start in range(0, len(rows), BATCH):
            features, _ = self._lesson.batch(rows[start : start + BATCH])
            code = rounded(self._codec.encoder(torch.from_numpy(features)))
            bits += float(self._codec.prior.bits(code, 1, self._axis).sum())
            answers.append(self._teacher.answer(self._codec.decoder(code).numpy()))
        gap = self._teacher.gap(np.concatenate(answers))
        found = Judged(lap.price, bits / len(rows), gap, gap.within(self._context.budget))
        better = found.within or (not any(entry.within for entry in self.judged) and gap.size < self._kept_gap)
        self.judged.append(found)
        if better:
            self._kept_gap = gap.size
            self._kept = {name: value.clone() for name, value in self._codec.state_dict().items()}

    def _feature_power(self) -> float:
        features, _ = self._lesson.batch(np.arange(min(self._fit, 4 * BATCH)))
        return float(features.var()) or 1.0

    def _fresh_optimizer(self) -> torch.optim.Adam:
        networks = [*self._codec.encoder.parameters(), *self._codec.decoder.parameters()]
        return torch.optim.Adam(
            [{"params": networks, "times": 1.0}, {"params": [*self._codec.prior.parameters()], "times": PRIOR_FASTER}],
            lr=FEATURES_LEARNING_RATE,
        )

    def _save(self, lap: int, epoch: int) -> None:
        tensors = {f"now.{name}": value for name, value in self._codec.state_dict().items()}
        tensors |= {f"kept.{name}": value for name, value in self._kept.items()}
        for number, state in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
        note = {
            "key": self._key,
            "lap": lap,
            "epoch": epoch,
            "judged": [asdict(entry) for entry in self.judged],
            "kept_gap": self._kept_gap if self._kept else None,
        }
        path = self._context.folder / _STATE
        part = path.with_suffix(".part")
        save_file({name: value.contiguous() for name, value in tensors.items()}, part, {"note": json.dumps(note)})
        os.replace(part, path)

    def _resume(self) -> tuple[int, int]:
        """Where to go on: lap and epoch, after what was kept is in place again; the start when nothing fits."""
        found = _read(self._context.folder / _STATE, self._key)
        if found is None:
            return 0, 0
        note, tensors = found
        self._codec.load_state_dict(_under(tensors, "now."))
        self._kept = _under(tensors, "kept.")
        self._kept_gap = float("inf") if note["kept_gap"] is None else note["kept_gap"]
        self.judged = [
            Judged(entry["price"], entry["bits"], Gap(**entry["gap"]), entry["within"]) for entry in note["judged"]
        ]
        whole = self._optimizer.state_dict()
        for name, value in _under(tensors, "optimizer.").items():
            number, _, field = name.partition(".")
            whole["state"].setdefault(int(number), {})[field] = value
        self._optimizer.load_state_dict(whole)
        return note["lap"], note["epoch"]


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _read(path: Path, key: str) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """None where there is no state, or one of other work."""
    try:
        with safe_open(path, framework="pt") as file:
            note = json.loads((file.metadata() or {}).get("note", "{}"))
            if note.get("key") != key:
                return None
            return note, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError, ValueError):
        return None
