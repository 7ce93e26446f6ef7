"""What an imported file is taken for, whatever its name, and the way out when it cannot be taken."""

import io
import sys
import zipfile
from pathlib import Path

import pytest

from splitmesh.cli.importing import as_onnx
from splitmesh.convert.formats import ModelFormat, format_of, missing_module
from splitmesh.errors import MeshError
from tests.unit.onnx_nets import data, residual


def zipped(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, "1")
    return file.getvalue()


CONTENTS = {
    ModelFormat.ONNX: data(residual()),
    ModelFormat.PYTORCH: zipped("net/archive_format", "net/models/model.json"),
    ModelFormat.KERAS: zipped("metadata.json", "config.json", "model.weights.h5"),
    ModelFormat.KERAS_H5: b"\x89HDF\r\n\x1a\n" + bytes(32),
    ModelFormat.TFLITE: b"\x1c\x00\x00\x00TFL3" + bytes(32),
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_the_content_decides_and_not_the_name(tmp_path: Path, kind: ModelFormat) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(CONTENTS[kind])
    assert format_of(path) is kind


def test_every_format_of_a_single_file_is_tried_above() -> None:
    assert CONTENTS.keys() | {ModelFormat.SAVED_MODEL} == set(ModelFormat)


def test_a_folder_with_a_saved_model_is_one(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01")
    assert format_of(tmp_path) is ModelFormat.SAVED_MODEL


REFUSED = {
    "a state dict": (zipped("net/data.pkl", "net/data/0"), "torch.export.save"),
    "TorchScript": (zipped("net/data.pkl", "net/constants.pkl", "net/code/x.py"), "TorchScript"),
    "an old pickle": (b"\x80\x02}q\x00.", "torch.export.save"),
    "an older exported program": (zipped("serialized_exported_program.json", "version"), "before 2.8"),
    "a zip of something": (zipped("letter.txt"), "no known kind"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_imported_is_refused_with_a_way_out(tmp_path: Path, name: str) -> None:
    content, hint = REFUSED[name]
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(MeshError, match=hint):
        format_of(path)


def test_a_folder_without_a_model_and_a_folders_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MeshError, match=r"without saved_model\.pb"):
        format_of(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01")
    with pytest.raises(MeshError, match="give its folder"):
        format_of(tmp_path / "saved_model.pb")


def test_onnx_needs_no_extra_and_programs_need_torch() -> None:
    assert ModelFormat.ONNX.extra == ""
    assert missing_module(ModelFormat.ONNX) is None
    assert missing_module(ModelFormat.PYTORCH) is None, "developers have torch"


async def test_without_its_framework_a_model_is_refused_with_the_way_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # as if it were not installed
    path = tmp_path / "net.h5"
    path.write_bytes(CONTENTS[ModelFormat.KERAS_H5])
    with pytest.raises(MeshError, match=r"needs tensorflow to be read: pip install '\.\[tensorflow\]'"):
        async with as_onnx(path):
            pass
