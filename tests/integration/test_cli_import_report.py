"""`splitmesh models import --report`: whatever keeps a model out, the report says so, and the one line that people see too."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from splitmesh.cli import importing
from splitmesh.cli.import_page import render
from splitmesh.convert.compare import Comparison
from splitmesh.convert.formats import ModelFormat
from splitmesh.convert.report import ImportReport
from splitmesh.errors import MeshError, Reason
from splitmesh.model.manifest import MANIFEST
from splitmesh.model.segments import TensorInfo
from tests.integration.command_line import model_files, splitmesh_here


def zipped(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "{}")
    return path


def pickled(folder: Path) -> Path:
    (folder / "net.pt").write_bytes(b"\x80\x02}q\x00.")
    return folder / "net.pt"


def damaged_version(folder: Path) -> Path:
    (folder / "version").mkdir()
    (folder / "version" / MANIFEST).write_text("{")
    return folder / "version"


SOURCES: dict[str, tuple[Callable[[Path], Path], str, str, str]] = {
    "pickle": (pickled, "FIELD_INVALID", "unknown format", 'torch.export.save(program, "model.pt2")'),
    "zip": (lambda folder: zipped(folder / "x.zip", "a"), "FIELD_INVALID", "unknown format", "no known kind of model"),
    "no extra": (
        lambda folder: zipped(folder / "x.keras", "config.json", "metadata.json"),
        *("FIELD_INVALID", "Keras model", "needs tensorflow"),
    ),
    "folder": (damaged_version, "MODEL_CORRUPT", "version folder", "the manifest is not valid"),
}


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("dry_run", [True, False])
def test_what_is_refused_before_it_is_read_has_a_report_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, dry_run: bool
) -> None:
    monkeypatch.setattr(importing, "missing_module", lambda _: "tensorflow")
    make, reason, called, text = SOURCES[kind]
    source, page, data = make(tmp_path), tmp_path / "report.html", tmp_path / "report.json"
    for report in (page, data):
        ended = splitmesh_here(
            *("models", "import", source, "--name", "x", "--report", report), *(["--dry-run"] if dry_run else [])
        )
        assert ended.code == 1
        assert f"splitmesh: {reason}: " in ended.err
        assert text in ended.err
    found = json.loads(data.read_text())
    assert (found["accepted"], found["source"], found["refusal"]["reason"]) == (False, str(source), reason)
    assert text in found["refusal"]["message"]
    assert called in page.read_text()
    assert text.replace('"', "&quot;") in page.read_text()


def test_a_layout_that_is_none_has_a_report(tmp_path: Path) -> None:
    ended = splitmesh_here("models", "import", "--oci", f"{tmp_path}:x", "--report", tmp_path / "r.json", "--json")
    assert (ended.code, json.loads(ended.out)["accepted"]) == (1, False)
    assert json.loads(ended.out)["format"] == "version in an OCI layout"
    assert "no OCI layout" in json.loads((tmp_path / "r.json").read_text())["refusal"]["message"]


def test_a_child_that_was_ended_has_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ended(*_: Any, **__: Any) -> None:
        raise MeshError(Reason.MODEL_TOO_LARGE, "the work needs more memory")

    model_files(tmp_path)
    monkeypatch.setattr(importing, "run_job", ended)
    out = splitmesh_here("models", "import", tmp_path / "small.onnx", "--name", "x", "--report", tmp_path / "r.json")
    assert "splitmesh: MODEL_TOO_LARGE: " in out.err
    found = json.loads((tmp_path / "r.json").read_text())
    assert (found["format"], found["refusal"]["reason"]) == ("onnx", "MODEL_TOO_LARGE")


def test_the_page_of_a_converted_model_says_what_it_was_and_what_it_is() -> None:
    page = render(
        ImportReport(
            *("net.pt2", ModelFormat.PYTORCH.value, "PyTorch 2 exported program"),
            operators={"Conv": 2},
            opset=20,
            inputs=(TensorInfo(name="x", dtype="float32", shape=(-1, 3)),),
            comparison=Comparison(16, 6e-8, 1e-3),
            notes=("its batch <varies>",),
        )
    )
    told = ["PyTorch 2 exported program", "It can be imported", "<code>Conv 2</code>", "x float32[-1, 3]"]
    for text in (*told, "6.0e-08 of an output on 16 random inputs (allowed: 0.001)", "its batch &lt;varies&gt;"):
        assert text in page
