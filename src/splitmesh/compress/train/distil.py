"""The step ``distil``: a light student learns the original's soft answers and replaces the whole model.

Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015. The teacher sees the same changed picture as the
student (Beyer et al., Knowledge distillation: A good teacher is patient and consistent, CVPR 2022), so a flip never
teaches an answer that the original does not give. The best epoch by agreement on the validation samples is taken.

The student has none of the original's tensors: a split version is whole again behind this step, and a recipe cuts it anew.

Every epoch ends with a checkpoint (safetensors) in the step's folder; an interrupted step goes on behind the last one and
comes out the same as if it had never stopped, for the same number of threads.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from splitmesh.compress.recipe import Distil
from splitmesh.compress.recut import as_whole
from splitmesh.compress.train.export import export_module
from splitmesh.compress.train.students import Student
from splitmesh.compress.train.threads import torch_threads
from splitmesh.compress.whole_model import compared, latency_figures, outputs, size_figures, usable
from splitmesh.compress.work import Context, Rows, Work
from splitmesh.errors import MeshError, Reason
from splitmesh.model.classes import as_probabilities
from splitmesh.model.graph import Graph
from splitmesh.model.load import load_model
from splitmesh.model.manifest import Manifest
from splitmesh.model.verify import MAX_RUN_S
from splitmesh.runtime import Session, open_session

TEMPERATURE = 3.0
BATCH = 32
PEAK_LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.01
WARM_UP = 0.1
"""Share of the steps in which the learning rate rises; then it falls as a cosine."""

SHIFT = 16
"""Pictures move by up to a side's so-many-th part."""

PATIENCE = 3
"""Training ends when this part of the epochs (8 at least) brought nothing better: 3 for a third."""

CHECKPOINT = "distil.safetensors"

_LEAST_PROBABILITY = 1e-7


def apply(work: Work, step: Distil, context: Context) -> Work:
    """The version with a student as its whole, not split.

    Raises MeshError MODEL_OPERATOR_UNSUPPORTED for anything but a classifier with one picture as its input and one
    output ``[batch, classes]``.
    """
    task = _task(work.manifest, work.whole(), context)
    with torch_threads(context.threads):
        student = _taught(task, step, work.whole(), context)
        size = task.height, task.width
        shape = (task.batch, *size, task.channels) if task.channels_last else (task.batch, task.channels, *size)
        new = export_module(
            student, [torch.zeros(shape)], [task.input], [task.output], dynamic_batch=task.varying
        ).SerializeToString(deterministic=True)
    made = as_whole(work, new, context)
    size_figures(work.whole(), new, context)
    latency_figures(work.whole(), new, context)
    for side, data in (("before", work.whole()), ("after", new)):
        context.figures[f"macs_{side}"] = float(sum(Graph(load_model(data)).macs))
    close = compared(work.whole(), new, context.samples, _deciding(context), task.output, threads=context.threads)
    context.figures["validation_agreement"] = close.agreement or 0.0
    context.remark(f"distil: {close.text()} (validation samples, which chose the epoch)")
    context.progress("done", 1.0)
    return made


@dataclass(frozen=True, slots=True)
class _Task:
    """What the student must look like from outside."""

    input: str
    output: str
    channels: int
    height: int
    width: int
    channels_last: bool
    classes: int
    probabilities: bool
    batch: int
    varying: bool


@dataclass(slots=True)
class _State:
    """Where training stands; all of it is in the checkpoint."""

    epoch: int = 0
    best_epoch: int = 0
    best: tuple[float, float] = (-1.0, -math.inf)
    """Agreement, and the divergence from the teacher negated."""
    weights: dict[str, Tensor] = field(default_factory=dict)
    """Of the best epoch."""


def _task(manifest: Manifest, whole: bytes, context: Context) -> _Task:
    inputs, outs = manifest.whole.inputs, manifest.whole.outputs
    problem = ""
    if not manifest.class_output:
        problem = "the model is no classifier"
    elif len(outs) != 1 or len(outs[0].shape) != 2:
        problem = f"the model has {len(outs)} outputs, the first of shape {list(outs[0].shape)}"
    elif len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].dtype != "float32" or -1 in inputs[0].shape[1:]:
        problem = f"the model takes {[(info.dtype, list(info.shape)) for info in inputs]}"
    if problem:
        raise MeshError(
            Reason.MODEL_OPERATOR_UNSUPPORTED,
            f"distil needs a classifier of one float32 picture of known size with one output [batch, classes]: {problem}",
        )
    batch, *rest = inputs[0].shape
    last = rest[2] in (1, 3) and rest[0] not in (1, 3)
    height, width, channels = rest if last else (rest[1], rest[2], rest[0])
    answers = outputs(whole, context.samples, usable(context.samples, context.samples.fit), threads=context.threads)
    scores = answers[outs[0].name]
    return _Task(
        inputs[0].name,
        outs[0].name,
        channels,
        height,
        width,
        last,
        len(manifest.labels),
        bool(np.array_equal(as_probabilities(scores), scores.astype(np.float64))),
        max(batch, 1),
        batch == -1,
    )


def _deciding(context: Context) -> Rows:
    samples = context.samples
    return usable(samples, samples.validation if len(samples.validation) else samples.fit)


def _taught(task: _Task, step: Distil, whole: bytes, context: Context) -> Student:
    samples = context.samples
    torch.manual_seed(samples.seed)
    student = Student(
        task.channels,
        (task.height, task.width),
        task.classes,
        step.width,
        channels_last=task.channels_last,
        probabilities=task.probabilities,
    )
    optimiser = torch.optim.AdamW(student.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    settings = _settings(task, step, whole, context)
    state = _read(context, settings, student, optimiser) or _State()
    patience = max(8, step.epochs // PATIENCE)
    with closing(open_session(whole, threads=context.threads, max_run_s=MAX_RUN_S)) as teacher:
        while state.epoch < step.epochs and state.epoch - state.best_epoch < patience:
            context.progress(f"epoch {state.epoch + 1} of {step.epochs}", state.epoch / step.epochs)
            _one_epoch(student, optimiser, teacher, task, state.epoch, step.epochs, context)
            state.epoch += 1
            score = _score(student, teacher, task, context)
            if score > state.best:
                state.best, state.best_epoch = score, state.epoch
                state.weights = {name: value.clone() for name, value in student.state_dict().items()}
            _write(context.folder / CHECKPOINT, settings, student, optimiser, state)
    student.load_state_dict(state.weights)
    context.figures["epochs"], context.figures["best_epoch"] = float(state.epoch), float(state.best_epoch)
    context.figures["parameters_after"] = float(sum(value.numel() for value in student.parameters()))
    return student.eval()


def _one_epoch(
    student: Student,
    optimiser: torch.optim.Optimizer,
    teacher: Session,
    task: _Task,
    epoch: int,
    epochs: int,
    context: Context,
) -> None:
    samples = context.samples
    # Of its own: what an epoch draws does not depend on how many were run before in this process.
    random = torch.Generator().manual_seed(samples.seed * 1_000_003 + epoch)
    rows = usable(samples, samples.fit)
    order = torch.randperm(len(rows), generator=random).numpy()
    size = BATCH if task.varying else task.batch
    parts = np.array_split(order, max(1, len(order) // size))
    student.train()
    for number, part in enumerate(parts):
        done = (epoch + number / len(parts)) / epochs
        rate = PEAK_LEARNING_RATE * min(done / WARM_UP + 0.01, 0.5 + 0.5 * math.cos(math.pi * done), 1.0)
        for group in optimiser.param_groups:
            group["lr"] = rate
        pictures = torch.from_numpy(samples.calibration.feeds(rows[part])[task.input])
        pictures = _changed(pictures, task, random)
        wanted = _soft(teacher.run({task.input: pictures.numpy()})[task.output], task)
        loss = _divergence(student.logits(pictures), wanted)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(student.parameters(), 5.0)
        optimiser.step()


def _soft(answers: np.ndarray[tuple[int, ...], np.dtype[np.generic]], task: _Task) -> Tensor:
    """The teacher's logits."""
    scores = torch.from_numpy(answers.astype(np.float32))
    return scores.clamp_min(_LEAST_PROBABILITY).log() if task.probabilities else scores


def _divergence(given: Tensor, wanted: Tensor) -> Tensor:
    return (
        functional.kl_div(
            functional.log_softmax(given / TEMPERATURE, dim=1),
            functional.log_softmax(wanted / TEMPERATURE, dim=1),
            log_target=True,
            reduction="batchmean",
        )
        * TEMPERATURE**2
    )


def _changed(pictures: Tensor, task: _Task, random: torch.Generator) -> Tensor:
    """Flipped and moved, every picture in its own way; what moves in mirrors the edge."""
    rows, columns = (1, 2) if task.channels_last else (2, 3)
    for axis in (rows, columns):
        mirrored = torch.rand(len(pictures), generator=random) < 0.5
        pictures = torch.where(mirrored.view(-1, 1, 1, 1), pictures.flip(axis), pictures)
    for axis, side in ((rows, task.height), (columns, task.width)):
        most = side // SHIFT
        moves = torch.randint(-most, most + 1, (len(pictures),), generator=random)
        places = (torch.arange(side)[None] + moves[:, None]).abs()
        places = torch.where(places >= side, 2 * (side - 1) - places, places)
        shape = [len(pictures), 1, 1, 1]
        shape[axis] = side
        pictures = pictures.gather(axis, places.view(shape).expand(pictures.shape))
    return pictures.contiguous()


def _score(student: Student, teacher: Session, task: _Task, context: Context) -> tuple[float, float]:
    student.eval()
    agreed = count = 0
    divergence = 0.0
    with torch.no_grad():
        for feed in context.samples.feeds(_deciding(context)):
            wanted = _soft(teacher.run(feed)[task.output], task)
            given = student.logits(torch.from_numpy(feed[task.input]))
            agreed += int((given.argmax(dim=1) == wanted.argmax(dim=1)).sum())
            divergence += float(_divergence(given, wanted)) * len(given)
            count += len(given)
    return agreed / count, -divergence / count


def _settings(task: _Task, step: Distil, whole: bytes, context: Context) -> str:
    """Tells whether a checkpoint is of the same work."""
    samples = context.samples
    digest = hashlib.sha256(whole)
    digest.update(samples.fit.tobytes() + samples.validation.tobytes())
    digest.update(f"{task} {step.model_dump_json()} {samples.seed} {context.threads} {torch.__version__}".encode())
    for name, array in sorted(samples.calibration.tensors.items()):
        digest.update(name.encode() + np.ascontiguousarray(array[:: max(1, len(array) // 16)]).tobytes())
    return digest.hexdigest()


def _write(path: Path, settings: str, student: Student, optimiser: torch.optim.Optimizer, state: _State) -> None:
    tensors = {f"now.{name}": value for name, value in student.state_dict().items()}
    tensors |= {f"best.{name}": value for name, value in state.weights.items()}
    for number, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"moment.{number}.{name}": value for name, value in moments.items()}
    facts = {"settings": settings, "epoch": state.epoch, "best_epoch": state.best_epoch, "best": state.best}
    draft = path.with_suffix(".draft")
    save_file(
        {name: value.contiguous().clone() for name, value in tensors.items()}, draft, {"state": json.dumps(facts)}
    )
    os.replace(draft, path)


def _read(context: Context, settings: str, student: Student, optimiser: torch.optim.Optimizer) -> _State | None:
    """Where an interrupted training stood; None to begin anew."""
    path = context.folder / CHECKPOINT
    if not path.is_file():
        return None
    fresh = {name: value.clone() for name, value in student.state_dict().items()}
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {}).get("state", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if facts.get("settings") != settings:
            return None
        weights = {name.removeprefix("best."): value for name, value in tensors.items() if name.startswith("best.")}
        student.load_state_dict({name[4:]: value for name, value in tensors.items() if name.startswith("now.")})
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("moment."):
                _, number, kind = name.split(".")
                moments.setdefault(int(number), {})[kind] = value
        optimiser.load_state_dict({**optimiser.state_dict(), "state": moments})
        first, second = facts["best"]
        return _State(int(facts["epoch"]), int(facts["best_epoch"]), (float(first), float(second)), weights)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError):
        # What was read before it failed must not linger: the same seed gives the same student.
        student.load_state_dict(fresh)
        optimiser.load_state_dict({**optimiser.state_dict(), "state": {}})
        context.remark("the checkpoint of an earlier attempt could not be read: training began anew")
        return None
