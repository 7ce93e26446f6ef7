"""What the original model's answers demand of rebuilt features, as a loss to train with and as a figure to choose by.

The loss runs through the tail in torch where that can be done; the figure always comes from the tail in onnxruntime.
Knows nothing of codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as torch's own documentation has it

from splitmesh.compress.recipe import Budget
from splitmesh.compress.train.bottleneck_data import Lesson
from splitmesh.compress.train.graph import to_torch
from splitmesh.compress.work import BATCH, Context
from splitmesh.errors import MeshError, Reason
from splitmesh.runtime import open_session

Floats = NDArray[np.float32]

TOLERATED = 0.01
"""Share of the validation samples named otherwise, or relative error of the outputs, where the budget says nothing."""

ROOM = 0.5
"""Share of a limit that the validation may use up: they chose the price, so the hold-out will be further off, and the
coarser rates come on top."""

_LEAST = 1e-7


@dataclass(frozen=True, slots=True)
class Gap:
    """How far answers are from the original model's, on the validation samples."""

    disagreement: float | None
    """Share of another class; None for a model without classes."""
    output_error: float
    """Root mean square of the difference, as a share of the answers'."""
    accuracy_loss: float | None
    """Against the labels; None without."""

    def within(self, budget: Budget) -> bool:
        """Whether every limit is kept with room to spare; with none that applies, :data:`TOLERATED`."""
        limits = [
            (self.disagreement, budget.max_disagreement),
            (self.accuracy_loss, budget.max_accuracy_loss),
            (self.output_error if self.disagreement is None else None, budget.max_output_error),
        ]
        stated = [(found, limit) for found, limit in limits if found is not None and limit is not None]
        if not stated:
            stated = [(self.output_error if self.disagreement is None else self.disagreement, TOLERATED)]
        return all(found <= ROOM * limit for found, limit in stated)

    @property
    def size(self) -> float:
        """To compare two gaps that are both too wide."""
        return self.output_error if self.disagreement is None else self.disagreement


class Teacher:
    """The tail after the bottleneck, and the original's answers it should give."""

    def __init__(self, tail: bytes, tensor: str, lesson: Lesson, context: Context) -> None:
        """Leaves a remark where the tail cannot be differentiated: then only features are taught."""
        self._session = open_session(tail, threads=context.threads)
        self._tensor, self._lesson = tensor, lesson
        self._fixed = context.samples.calibration.fixed_batch
        wanted = context.original_manifest.whole.outputs[0].name
        names = [spec.name for spec in self._session.outputs]
        self._output = wanted if wanted in names else names[0]
        takes = [spec.name for spec in self._session.inputs]
        if takes != [tensor]:
            raise MeshError(Reason.CUT_INVALID, f"a bottleneck needs a cut of one tensor; the tail takes {takes}")
        answers = lesson.answers
        self._classes = answers.ndim == 2 and answers.shape[1] > 1
        self._probabilities = self._classes and _are_probabilities(answers)
        self._power = float(np.square(answers, dtype=np.float64).mean()) or 1.0
        self._module = self._differentiable(tail, context)

    def _differentiable(self, tail: bytes, context: Context) -> nn.Module | None:
        try:
            module = to_torch(onnx.load_model_from_string(tail))
            features, answers = self._lesson.batch(np.arange(self._fixed or 1))
            with torch.no_grad():
                given = module(torch.from_numpy(features))[self._index(module)]
            same = given.shape == answers.shape
            reason = "" if same else f"its answers are {list(given.shape)}, the original's {list(answers.shape)}"
        except MeshError as error:
            module, reason = None, error.message
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
            module, reason = None, f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
        if module is None or reason:
            context.remark(f"trained on the features alone, not on the tail's answers: {reason}")
            return None
        return module

    def _index(self, module: nn.Module) -> int:
        names: Sequence[str] = module.output_names  # type: ignore[assignment]
        return list(names).index(self._output)

    @property
    def teaches_answers(self) -> bool:
        """Whether :meth:`loss` can be asked."""
        return self._module is not None

    def loss(self, features: Tensor, answers: Tensor) -> Tensor:
        """Of rebuilt features ``[n, ...]``: nats of divergence for classes, else squared error over the answers' power."""
        assert self._module is not None
        given: Tensor = self._module(features)[self._index(self._module)]
        if not self._classes:
            return F.mse_loss(given, answers) / self._power
        if self._probabilities:
            wanted, got = answers.clamp(min=_LEAST), given.clamp(min=_LEAST)
            return (wanted * (wanted.log() - got.log())).sum(1).mean()
        return F.kl_div(F.log_softmax(given, 1), F.log_softmax(answers, 1), log_target=True, reduction="batchmean")

    def answer(self, features: Floats) -> Floats:
        """The tail's first output ``[n, ...]`` by onnxruntime."""
        size, given = self._fixed or BATCH, []
        for start in range(0, len(features), size):
            part = features[start : start + size]
            filled = part if self._fixed is None else np.resize(part, (size, *part.shape[1:]))
            given.append(self._session.run({self._tensor: np.ascontiguousarray(filled)})[self._output][: len(part)])
        return np.concatenate(given).astype(np.float32)

    def gap(self, answers: Floats) -> Gap:
        """Of the answers to all validation samples."""
        wanted = self._lesson.answers[self._lesson.training :]
        if answers.shape != wanted.shape:
            raise MeshError(
                Reason.CUT_INVALID, f"the tail gives {list(answers.shape)}, the original {list(wanted.shape)}"
            )
        power = float(np.square(wanted, dtype=np.float64).mean()) or 1.0
        error = float(np.square(answers.astype(np.float64) - wanted).mean() / power) ** 0.5
        if not self._classes:
            return Gap(None, error, None)
        named, before = answers.argmax(1), wanted.argmax(1)
        return Gap(float((named != before).mean()), error, self._accuracy_loss(named, before))

    def _accuracy_loss(self, named: NDArray[np.int64], before: NDArray[np.int64]) -> float | None:
        labels = self._lesson.labels
        if labels is None or not (labels >= 0).any():
            return None
        known = labels >= 0
        return float((before == labels)[known].mean() - (named == labels)[known].mean())

    def close(self) -> None:
        """The runtime's session."""
        self._session.close()


def _are_probabilities(answers: Floats) -> bool:
    return bool((answers >= -_LEAST).all() and np.abs(answers.sum(1) - 1).max() < 1e-3)
