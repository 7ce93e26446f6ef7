"""Models of other frameworks through `splitmesh models import`: a real registry and partitioner, the original's own answers."""

import asyncio
import io
import json
import sys
import warnings
import zipfile
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import pytest_asyncio
import torch

from splitmesh.model.manifest import HEAD, TAIL, WHOLE
from splitmesh.testing.parts import require_part
from tests.integration.command_line import Ended, refused, splitmesh
from tests.support.torch_programs import SIDE, MixesSamples, save_program, small_net
from tests.support.worlds import ROOT, World, world

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def control(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with world(tmp_path_factory.mktemp("control")) as made:
        await made.start("registry", min_free_bytes=0)
        await made.start("partitioner")
        yield made


@pytest.fixture(scope="module")
def keras_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = all(find_spec(name) is not None for name in ("tensorflow", "tf2onnx"))
    require_part("TensorFlow", found, "`make tensorflow` installs it")
    folder = tmp_path_factory.mktemp("keras")
    asyncio.run(_run(sys.executable, "-m", "tests.support.keras_models", folder))
    return folder


async def _run(*command: object) -> None:
    process = await asyncio.create_subprocess_exec(
        *map(str, command), cwd=ROOT, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    _, err = await process.communicate()
    assert process.returncode == 0, err.decode()[-2000:]


async def import_(control: World, path: Path, name: str, *options: object) -> Ended:
    addresses = ",".join(f"{service}={address}" for service, address in control.addresses.items())
    return await splitmesh("models", "import", path, "--name", name, *options, STATIC_ADDRESSES=addresses)


async def run(control: World, *arguments: object) -> Ended:
    addresses = ",".join(f"{service}={address}" for service, address in control.addresses.items())
    return await splitmesh(*arguments, STATIC_ADDRESSES=addresses)


async def pulled(control: World, version: str, folder: Path) -> Path:
    ended = await run(control, "models", "pull", version, "--out", folder)
    assert ended.code == 0, ended
    return folder


async def test_a_pytorch_program_is_imported_split_and_answers_as_torch_does(control: World, tmp_path: Path) -> None:
    net = small_net()
    program = save_program(net, tmp_path / "net.pt2", (2, 1, SIDE, SIDE), varying=True)
    ended = await import_(control, program, "torch-net", "--description", "first try", "--json")
    assert ended.json["version"] == 1
    assert ended.json["description"].startswith(f"first try; from a PyTorch {torch.__version__} exported program; ")
    assert "random inputs the two differ by at most" in ended.err
    whole = onnx.load(await pulled(control, "torch-net:1", tmp_path / "whole") / WHOLE)
    cut = next(node.input[0] for node in reversed(whole.graph.node) if node.op_type == "Conv")
    split = await run(control, "split", "torch-net:1", "--at", cut, "--json")
    assert split.json["version"] == 2
    halves = await pulled(control, "torch-net:2", tmp_path / "halves")
    feed = np.random.default_rng(1).standard_normal((5, 1, SIDE, SIDE)).astype(np.float32)
    head, tail = (ort.InferenceSession(halves / name) for name in (HEAD, TAIL))
    (crossing,) = head.run(None, {"x": feed})
    (answer,) = tail.run(None, {tail.get_inputs()[0].name: crossing})
    with torch.no_grad():
        np.testing.assert_allclose(answer, net(torch.from_numpy(feed)).numpy(), atol=1e-5)


async def test_a_fixed_batch_is_made_to_vary_and_said(control: World, tmp_path: Path) -> None:
    net = small_net()
    program = save_program(net, tmp_path / "net.pt2", (1, 1, SIDE, SIDE), varying=False)
    ended = await import_(control, program, "fixed")
    assert "for a batch of 1 only; here its batch varies" in ended.err
    folder = await pulled(control, "fixed:1", tmp_path / "out")
    feed = np.random.default_rng(1).standard_normal((4, 1, SIDE, SIDE)).astype(np.float32)
    (answer,) = ort.InferenceSession(folder / WHOLE).run(None, {"x": feed})
    with torch.no_grad():
        np.testing.assert_allclose(answer, net(torch.from_numpy(feed)).numpy(), atol=1e-5)


async def test_a_program_that_mixes_samples_keeps_its_batch(control: World, tmp_path: Path) -> None:
    program = save_program(MixesSamples(), tmp_path / "mixes.pt2", (1, 1, 4, 4), varying=False)
    ended = await import_(control, program, "mixes", "--json")
    assert ended.json["version"] == 1
    assert "its batch stays fixed at 1" in ended.err
    folder = await pulled(control, "mixes:1", tmp_path / "out")
    assert ort.InferenceSession(folder / WHOLE).get_inputs()[0].shape == [1, 1, 4, 4]


async def test_a_tolerance_below_what_two_runtimes_give_refuses(control: World, tmp_path: Path) -> None:
    program = save_program(small_net(), tmp_path / "net.pt2", (2, 1, SIDE, SIDE), varying=True)
    ended = await import_(control, program, "strict", "--tolerance", 0)
    assert "not faithful" in refused(ended, "FIELD_INVALID")
    assert (await run(control, "models", "list", "--json")).json  # the registry has the others and not this one
    assert "strict" not in (await run(control, "models", "list", "--json")).out


async def test_pickled_objects_in_a_program_never_run(control: World, tmp_path: Path) -> None:
    program = save_program(small_net(), tmp_path / "net.pt2", (2, 1, SIDE, SIDE), varying=True)
    marker = tmp_path / "ran"
    bad = tmp_path / "bad.pt2"
    with zipfile.ZipFile(program) as old, zipfile.ZipFile(bad, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, _poisoned(marker) if name.endswith("sample_inputs/model.pt") else content)
    refused(await import_(control, bad, "bad"), "MODEL_CORRUPT")
    assert not marker.exists()


class _Runs:
    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self._marker,)


def _poisoned(marker: Path) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save((_Runs(marker),), file)
    return file.getvalue()


async def test_a_state_dict_is_refused_with_the_lines_that_export(tmp_path: Path) -> None:
    torch.save(small_net().state_dict(), tmp_path / "net.pt")
    ended = await splitmesh("models", "import", tmp_path / "net.pt", "--name", "x")
    assert ended.code == 1
    assert "splitmesh: FIELD_INVALID: " in ended.err
    assert 'torch.export.save(program, "model.pt2")' in ended.err


async def test_channels_first_is_refused_for_onnx(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"\x08\x01")
    ended = await splitmesh("models", "import", tmp_path / "x.onnx", "--name", "x", "--channels-first")
    assert "TensorFlow" in refused(ended, "FIELD_INVALID")


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("net.keras", "Keras"),
        ("net.h5", "(HDF5)"),
        ("net", "TensorFlow SavedModel"),
        ("net.tflite", "TFLite model"),
    ],
)
async def test_a_tensorflow_model_is_imported_and_split(
    control: World, keras_models: Path, tmp_path: Path, file: str, source: str
) -> None:
    name = f"tf-{file.replace('.', '-')}"
    ended = await import_(control, keras_models / file, name, "--json")
    assert source in ended.json["description"]
    assert "is [-1, 16, 16, 3], channels last" in ended.err
    whole = onnx.load(await pulled(control, f"{name}:1", tmp_path) / WHOLE)
    cut = next(node.input[0] for node in reversed(whole.graph.node) if node.op_type == "Conv")
    split = await run(control, "split", f"{name}:1", "--at", cut, "--json")
    assert split.json["max_abs_error"] < 1e-5


async def test_channels_first_makes_a_tensorflow_model_take_pictures(
    control: World, keras_models: Path, tmp_path: Path
) -> None:
    last = await import_(control, keras_models / "net.keras", "order")
    first = await import_(control, keras_models / "net.keras", "order", "--channels-first")
    assert (last.code, first.code) == (0, 0), (last, first)
    assert "is [-1, 3, 16, 16], channels first" in first.err
    feed = np.random.default_rng(1).random((2, 16, 16, 3)).astype(np.float32)
    answers = []
    for version, given in ((1, feed), (2, feed.transpose(0, 3, 1, 2))):
        folder = await pulled(control, f"order:{version}", tmp_path / str(version))
        answers.append(ort.InferenceSession(folder / WHOLE).run(None, {"picture": given})[0])
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-6)


@pytest.mark.parametrize(("file", "complaint"), [("lambda.keras", "Lambda"), ("writes", "WriteFile")])
async def test_tensorflow_models_that_bring_code_are_refused(
    control: World, keras_models: Path, file: str, complaint: str
) -> None:
    assert complaint in refused(await import_(control, keras_models / file, "code"), "MODEL_OPERATOR_UNSUPPORTED")


class _Solves(torch.nn.Module):
    """Two operators that ONNX has no translation for."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        square = x @ x.transpose(1, 2)
        return torch.as_tensor(torch.linalg.eigvalsh(square) + torch.linalg.solve(square, x).sum(2))


async def test_a_program_without_a_translation_tells_every_operator_and_not_the_first(tmp_path: Path) -> None:
    program = save_program(_Solves(), tmp_path / "net.pt2", (2, 4, 4), varying=False)
    ended = await splitmesh("models", "import", program, "--dry-run", "--json")
    assert ended.code == 1, ended
    report = json.loads(ended.out)
    assert {one["name"] for one in report["unsupported"]} == {"aten._linalg_eigh", "aten._linalg_solve_ex"}
    assert all(one["hint"] for one in report["unsupported"])
    assert "splitmesh: MODEL_OPERATOR_UNSUPPORTED: " in ended.err
    assert "aten._linalg_solve_ex" in ended.err
