"""Students taught by the model's own answers, and torch modules as ONNX."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from onnx import numpy_helper
from torch import nn

from splitmesh.compress.recipe import Distil
from splitmesh.compress.train import distil
from splitmesh.compress.train.export import export_module
from splitmesh.compress.train.students import Student
from splitmesh.compress.whole_model import compared
from splitmesh.compress.work import Context, Work
from splitmesh.errors import MeshError, Reason
from splitmesh.model.load import load_model
from splitmesh.runtime import open_session
from tests.unit import whole_model_nets as nets
from tests.unit.onnx_nets import model, node, value

STEP = Distil(width=8, epochs=4)


class _StoppedError(Exception):
    pass


def _context(work: Work, folder: Path) -> Context:
    folder.mkdir(exist_ok=True)
    return nets.context(work, folder)


def test_a_student_learns_the_models_answers_and_replaces_it(tmp_path: Path) -> None:
    # An easy teacher: which of four patterns is strongest over the whole picture.
    patterns = numpy_helper.from_array(
        np.array([[[[1, 1], [1, 1]]], [[[-1, -1], [-1, -1]]], [[[1, 1], [-1, -1]]], [[[1, -1], [1, -1]]]], np.float32),
        "w",
    )
    net = model(
        [
            node("Conv", "x w", "c"),
            node("Relu", "c", "p"),
            node("GlobalAveragePool", "p", "g"),
            node("Flatten", "g", "f"),
            node("Mul", "f ten", "scores"),
        ],
        [value("x", ["N", 1, nets.SIDE, nets.SIDE])],
        [value("scores", ["N", nets.CLASSES])],
        [patterns, nets.vector("ten", 1, around=10.0)],
    )
    work = nets.split_work(net, ["p"])
    context = _context(work, tmp_path)
    made = distil.apply(work, Distil(width=16, epochs=25), context)
    assert made.manifest.split is None
    assert made.manifest.whole == work.manifest.whole
    assert made.manifest.labels == work.manifest.labels
    load_model(made.whole())
    close = compared(work.whole(), made.whole(), context.samples, context.samples.holdout, "scores")
    assert close.agreement is not None
    assert close.agreement > 0.7
    assert context.figures["validation_agreement"] > 0.7
    assert any("cut it anew" in text for text in context.remarks)


def test_an_interrupted_training_goes_on_to_the_same_student(tmp_path: Path) -> None:
    work = nets.whole_work(nets.resnet(8))
    straight = distil.apply(work, STEP, _context(work, tmp_path / "straight")).whole()

    context = _context(work, tmp_path / "stopped")
    seen: list[str] = []

    def stop(step: str, share: float) -> None:
        seen.append(step)
        if step.startswith("epoch 3"):
            raise _StoppedError

    context.progress = stop
    with pytest.raises(_StoppedError):
        distil.apply(work, STEP, context)
    torch.rand(7)  # what else happened in the process does not matter
    again = _context(work, tmp_path / "stopped")
    again.progress = lambda step, share: seen.append(step)
    assert distil.apply(work, STEP, again).whole() == straight
    assert [step for step in seen if step.startswith("epoch")] == [f"epoch {n} of 4" for n in (1, 2, 3, 3, 4)]


def test_a_damaged_or_foreign_checkpoint_is_not_used(tmp_path: Path) -> None:
    work = nets.whole_work(nets.resnet(8))
    straight = distil.apply(work, STEP, _context(work, tmp_path / "one")).whole()
    damaged = _context(work, tmp_path / "two")
    (damaged.folder / distil.CHECKPOINT).write_bytes(b"\x10" + b"\0" * 200)
    assert distil.apply(work, STEP, damaged).whole() == straight
    assert any("began anew" in text for text in damaged.remarks)
    foreign = _context(work, tmp_path / "one")
    other = distil.apply(work, Distil(width=12, epochs=2), foreign)
    assert foreign.figures["epochs"] == 2
    assert other.whole() != straight


def test_a_teacher_of_probabilities_gets_a_student_of_probabilities(tmp_path: Path) -> None:
    net = nets.resnet(8, batch=2)
    net.graph.node[-1].output[0] = "logits"
    net.graph.node.append(node("Softmax", "logits", "scores", axis=1))
    work = nets.whole_work(net)
    made = distil.apply(work, Distil(width=8, epochs=1), _context(work, tmp_path))
    answer = open_session(made.whole()).run({"x": nets.pictures(2)})["scores"]
    np.testing.assert_allclose(answer.sum(axis=1), 1, atol=1e-5)
    assert made.manifest.whole.inputs[0].shape[0] == 2


@pytest.mark.parametrize("kind", ["no classifier", "takes", "outputs"])
def test_what_a_student_cannot_replace_is_refused(kind: str, tmp_path: Path) -> None:
    net, samples = nets.resnet(8), None
    labels: tuple[str, ...] = nets.LABELS
    if kind == "no classifier":
        labels = ()
    elif kind == "outputs":
        net.graph.output.append(value("pool", ["N", 8, 1, 1]))
    else:
        net = model(
            [node("MatMul", "x w", "scores")],
            [value("x", ["N", 6])],
            [value("scores", ["N", 4])],
            [nets.stored("w", 6, 4)],
        )
        samples = np.ones((120, 6), np.float32)
    work = nets.whole_work(net, labels)
    with pytest.raises(MeshError, match=kind) as caught:
        distil.apply(work, STEP, nets.context(work, tmp_path, samples=samples))
    assert caught.value.reason is Reason.MODEL_OPERATOR_UNSUPPORTED


@pytest.mark.parametrize("size", [(8, 8), (12, 40), (96, 64), (224, 224)])
@pytest.mark.parametrize("last", [False, True])
def test_students_take_pictures_of_any_size(size: tuple[int, int], last: bool) -> None:
    student = Student(3, size, 5, 8, channels_last=last).eval()
    shape = (2, *size, 3) if last else (2, 3, *size)
    assert student(torch.zeros(shape)).shape == (2, 5)


@pytest.mark.parametrize("dynamic", [True, False])
def test_an_exported_module_is_plain_and_the_same_every_time(dynamic: bool) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)).train()
    made = [export_module(module, [torch.randn(1, 1, 8, 8)], ["x"], ["y"], dynamic) for _ in range(2)]
    first, second = (entry.SerializeToString(deterministic=True) for entry in made)
    assert first == second
    assert b".py" not in first
    assert module.training
    batch = made[0].graph.input[0].type.tensor_type.shape.dim[0]
    assert (batch.dim_param == "batch") == dynamic
    assert open_session(first).run({"x": np.ones((1, 1, 8, 8), np.float32)})["y"].shape == (1, 3)


def test_a_module_that_cannot_be_exported_is_refused() -> None:
    class Strange(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * float(np.asarray(x.sum().item()))

    with pytest.raises(MeshError, match="cannot export") as caught:
        export_module(Strange(), [torch.ones(1, 3)], ["x"], ["y"])
    assert caught.value.reason is Reason.MODEL_OPERATOR_UNSUPPORTED


def test_a_module_that_onnx_answers_otherwise_is_refused() -> None:
    class Counting(nn.Module):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            Counting.calls += 1
            return x + Counting.calls

    with pytest.raises(MeshError, match="differs from torch") as caught:
        export_module(Counting(), [torch.ones(1, 3)], ["x"], ["y"])
    assert caught.value.reason is Reason.SPLIT_NOT_EQUAL
