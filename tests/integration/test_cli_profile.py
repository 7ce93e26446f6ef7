"""`splitmesh profile` on a file alone: tables, JSON, figures, and what is refused."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from splitmesh.model.profile_data import Profile
from tests.integration.command_line import model_files, refused, splitmesh_here

CUTS = 7


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    model_files(folder)
    return folder / "small.onnx"


def test_a_file_is_profiled_on_this_machine(model: Path) -> None:
    ended = splitmesh_here("profile", model, "--budget-s", 1, "--batch", 2, "--json")
    profile = Profile.from_json(ended.out)
    assert (profile.key.node, profile.key.batch, profile.key.threads) == ("local", 2, 1)
    assert len(profile.cuts) == CUTS
    assert profile.whole_ms > 0


def test_the_table_shows_every_cut_and_where_the_numbers_come_from(model: Path) -> None:
    ended = splitmesh_here("profile", model, "--budget-s", 5)
    assert ended.code == 0
    for text in ("edges", "head ms", "tail ms", "uint8+zstd", f"of {CUTS} cuts timed", "noise", "the whole model"):
        assert text in ended.out, text


@pytest.mark.parametrize("suffix", ["png", "svg", "html"])
def test_a_figure_is_written_as_its_name_says(model: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"profile.{suffix}"
    ended = splitmesh_here("profile", model, "--budget-s", 0.2, "--plot", path)
    assert ended.code == 0, ended.err
    if suffix == "png":
        with Image.open(path) as picture:
            assert picture.width > 500
        return
    text = path.read_text()
    assert "<svg" in text
    assert text.startswith("<!DOCTYPE html>" if suffix == "html" else "<?xml")


def test_a_figure_that_cannot_be_written_is_refused_before_anything_is_timed(model: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "profile.gif", tmp_path / "nowhere" / "profile.png"):
        ended = splitmesh_here("profile", model, "--budget-s", 100, "--plot", path)
        assert "plot" in refused(ended, "FIELD_INVALID")


def test_without_matplotlib_the_extra_is_named(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError(f"No module named {name!r}", name="matplotlib")
        return known(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    ended = splitmesh_here("profile", model, "--plot", tmp_path / "profile.png")
    assert ended.code == 1
    assert "splitmesh[plot]" in ended.err


def test_a_file_has_no_node(model: Path) -> None:
    assert "node" in refused(splitmesh_here("profile", model, "--node", "line-1"), "FIELD_INVALID")


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"no model")
    refused(splitmesh_here("profile", path), "MODEL_CORRUPT")
