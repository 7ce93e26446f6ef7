"""The step ``leakage`` on whole, cut, rounded and coded versions: what it measures, writes, keeps and refuses."""

from __future__ import annotations

import importlib.util
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from splitmesh.compress import leakage
from splitmesh.compress.crossing import Reader, laid_out, of_hops, spread
from splitmesh.compress.leakage import apply
from splitmesh.compress.recipe import Leakage
from splitmesh.compress.work import Work
from splitmesh.errors import MeshError, Reason
from splitmesh.model.cuts import list_cuts
from splitmesh.model.graph import Graph
from splitmesh.model.load import load_model
from splitmesh.model.manifest import HEAD, CutLeakage
from splitmesh.runtime import open_session
from splitmesh.tensor.entropy import RangeCodec, Tables
from tests.integration.small_model import CUT, SIDE, small_model, small_pictures
from tests.unit.leakage_versions import calibration, context, cut_at, encoded, rounded, samples, whole

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="the measure trains: pip install splitmesh[train]"
)
SHORT = Leakage(steps=40)


@needs_torch
def test_a_cut_version_is_measured_at_its_cut_and_shown(tmp_path: Path) -> None:
    work, held, told = cut_at(CUT), samples(), list[tuple[str, float]]()
    about = context(tmp_path, held, told)
    made = apply(work, SHORT, about)
    (entry,) = made.manifest.leakage
    assert (entry.cut, entry.codec) == ((CUT,), "float32")
    assert (entry.samples, entry.fit_samples, entry.steps) == (len(held.holdout), len(held.fit), 40)
    assert entry.ssim > entry.baseline_ssim + 0.2
    assert dict(made.artifacts) == dict(work.artifacts)
    assert made.manifest.model_copy(update={"leakage": ()}) == work.manifest
    assert work.manifest.leakage == ()
    sheet = Image.open(io.BytesIO((tmp_path / "cut_0.png").read_bytes()))
    assert (sheet.size, sheet.mode) == ((6 * SIDE, 2 * SIDE), "L")
    upper = np.asarray(sheet)[:SIDE].reshape(SIDE, 6, SIDE).transpose(1, 0, 2)
    np.testing.assert_array_equal(upper, small_pictures(96)[held.holdout[:6], :, :, 0])
    assert about.figures["ssim_0"] == entry.ssim
    assert any(f"n = {entry.samples}" in text for text in about.remarks)
    assert told[0] == (f"{CUT} (1 of 1)", 0.0)
    assert [share for _, share in told] == sorted(share for _, share in told)
    assert told[-1][1] == 1.0


@needs_torch
def test_a_whole_version_is_measured_at_cuts_over_its_depth(tmp_path: Path) -> None:
    made = apply(whole(), Leakage(steps=40, cuts=3), context(tmp_path, samples()))
    assert [entry.cut for entry in made.manifest.leakage] == [("c1",), ("c2",), ("flat",)]
    # the pictures are stripes of a kind and a strength, which even the last features tell
    assert all(entry.ssim > entry.baseline_ssim for entry in made.manifest.leakage)
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [f"cut_{number}.png" for number in range(3)]


@needs_torch
def test_what_a_bottleneck_leaves_out_cannot_be_seen(tmp_path: Path) -> None:
    held, found = samples(), list[CutLeakage]()
    for version in (cut_at(CUT), encoded(2), encoded(1, step=128)):
        (folder := tmp_path / str(len(found))).mkdir()
        found += apply(version, SHORT, context(folder, held)).manifest.leakage
    assert [entry.codec for entry in found] == ["float32", "bottleneck", "bottleneck"]
    plain, fine, coarse = (entry.ssim for entry in found)
    assert min(plain, fine) > coarse + 0.05


def test_the_attacker_has_what_the_wire_carries() -> None:
    held, rows = calibration(), np.array([0, 5, 40])
    (plain,) = Reader(of_hops(cut_at(CUT))[0], held, threads=1)(rows)
    (exact,) = open_session(cut_at(CUT).artifacts[HEAD]).run(held.feeds(rows)).values()
    np.testing.assert_array_equal(plain, exact)

    version = rounded(CUT)
    assert of_hops(version)[0].codec == "int8"
    (near,) = Reader(of_hops(version)[0], held, threads=1)(rows)
    assert 0 < np.abs(near - exact.astype(np.float32)).max() < 0.02 * np.abs(exact).max()
    split = version.manifest.split
    assert split is not None
    codes = open_session(version.artifacts[HEAD]).run(held.feeds(rows))[split.quantisation[0].wire_tensor]
    scale = np.array(split.quantisation[0].scale, np.float32).reshape(1, -1, 1, 1)
    zero = np.array(split.quantisation[0].zero_point, np.float32).reshape(1, -1, 1, 1)
    np.testing.assert_allclose(near, (codes.astype(np.float32) - zero) * scale, rtol=1e-6)


def test_of_a_coded_cut_the_attacker_has_what_its_best_rate_leaves() -> None:
    held, rows, version = calibration(), np.array([0, 5, 40]), encoded(2, step=8)
    split = version.manifest.split
    assert split is not None
    assert split.coding is not None
    (seen,) = Reader(of_hops(version)[0], held, threads=1)(rows)
    session = open_session(version.artifacts[HEAD])
    codes = session.run(held.feeds(rows))[split.wire[0].name]
    codec = RangeCodec(Tables.from_bytes(version.artifacts[split.coding.artifact]), session.outputs)
    np.testing.assert_allclose(seen, codec.coarse([codes], 0)[0].astype(np.float32) * 0.01, rtol=1e-5)
    assert len(np.unique(seen)) <= 33


def test_a_chain_is_measured_at_every_hop() -> None:
    work, held = cut_at(CUT, further=[["mixed"], ["flat"]]), calibration()
    crossings = of_hops(work)
    assert [crossing.cut for crossing in crossings] == [(CUT,), ("mixed",), ("flat",)]
    shapes = [Reader(crossing, held, threads=1)(np.arange(3))[0].shape for crossing in crossings]
    assert shapes == [(3, 8, 16, 16), (3, 8, 8, 8), (3, 8)]


@needs_torch
def test_an_interrupted_step_goes_on_and_a_changed_one_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from splitmesh.compress.train import leakage as training

    real, calls = training.rebuild, list[int]()

    def broken(*args: Any, **settings: Any) -> Any:
        calls.append(settings["steps"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **settings)

    monkeypatch.setattr(training, "rebuild", broken)
    step, held = Leakage(steps=10, cuts=2), samples()
    with pytest.raises(KeyboardInterrupt):
        apply(whole(), step, context(tmp_path, held))
    interrupted = apply(whole(), step, context(tmp_path, held))
    assert len(calls) == 3, "the finished cut is measured again"
    monkeypatch.setattr(training, "rebuild", real)
    (fresh := tmp_path / "fresh").mkdir()
    assert apply(whole(), step, context(fresh, held)).manifest == interrupted.manifest

    monkeypatch.setattr(training, "rebuild", broken)
    (tmp_path / "cut_1.json").write_text('{"key": "')
    (tmp_path / "cut_0.png").unlink()
    assert apply(whole(), step, context(tmp_path, held)).manifest == interrupted.manifest
    assert len(calls) == 5
    for changed, other in ((Leakage(steps=11, cuts=2), held), (step, samples(seed=4)), (step, samples(90))):
        before = len(calls)
        apply(whole(), changed, context(tmp_path, other))
        assert len(calls) == before + 2


@needs_torch
def test_earlier_measurements_stay_while_they_are_true(tmp_path: Path) -> None:
    known = CutLeakage(
        cut=("mixed",), codec="float32", ssim=0.5, psnr_db=20, baseline_ssim=0.1, samples=9, fit_samples=9, steps=10
    )
    old = known.model_copy(update={"codec": "int8"})
    before = cut_at(CUT)
    work = Work(before.manifest.model_copy(update={"leakage": (known, old)}), before.artifacts)
    made = apply(work, Leakage(steps=10), context(tmp_path, samples()))
    assert [(entry.cut, entry.codec) for entry in made.manifest.leakage] == [
        ((CUT,), "float32"),
        (("mixed",), "float32"),
    ]
    about = context(tmp_path, samples())
    about.original = small_model(note="before it was pruned")
    assert [entry.cut for entry in apply(work, Leakage(steps=10), about).manifest.leakage] == [(CUT,)]


def test_a_model_without_pictures_and_a_host_without_torch_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = cut_at(CUT)
    tensors = Work(work.manifest.model_copy(update={"preprocess": None}), work.artifacts)
    with pytest.raises(MeshError, match="how a picture becomes") as caught:
        apply(tensors, SHORT, context(tmp_path, samples()))
    assert caught.value.reason is Reason.MODEL_INCOMPLETE
    monkeypatch.setattr(leakage, "find_spec", lambda name: None)
    with pytest.raises(MeshError, match=r"splitmesh\[train\]") as caught:
        apply(work, SHORT, context(tmp_path, samples()))
    assert caught.value.reason is Reason.EXTRA_MISSING
    assert not list(tmp_path.iterdir())


def test_cuts_are_spread_over_the_depth_simple_ones_first() -> None:
    cuts = list_cuts(Graph(load_model(small_model())))
    assert [cut.tensors for cut in spread(cuts, 1)] == [("c1",)]
    assert [cut.tensors for cut in spread(cuts, 2)] == [("c1",), ("flat",)]
    assert spread(cuts, 100) == cuts
    for most in range(1, 6):
        chosen = spread(cuts, most)
        assert [cut.index for cut in chosen] == sorted(cut.index for cut in chosen)
        assert len(chosen) == most
    two = [replace(cuts[1], tensors=("a", "b"))]
    assert spread([cuts[0], *two, cuts[2], cuts[-1]], 3) == [cuts[0], cuts[2], cuts[-1]]
    assert spread([], 3) == []


def test_tensors_are_laid_out_where_their_shape_tells_the_place() -> None:
    def shape(*given: int, aspect: float = 1.0) -> tuple[int, ...]:
        return laid_out(np.zeros(given, np.float32), aspect).shape

    assert shape(2, 8, 16, 16) == (2, 8, 16, 16)
    assert shape(2, 16, 16, 8) == (2, 8, 16, 16)
    assert shape(2, 196, 384) == (2, 384, 14, 14)
    assert shape(2, 197, 384) == (2, 768, 14, 14)
    assert shape(2, 384, 49) == (2, 384, 7, 7)
    assert shape(2, 6, 64, 32) == (2, 192, 8, 8)
    assert shape(2, 8, 12, 24, aspect=0.5) == (2, 8, 12, 24)
    assert shape(2, 50, 8, aspect=0.5) == (2, 8, 5, 10)
    assert shape(2, 128, 1, 1) == (2, 128)
    assert shape(2, 77) == (2, 77)
    assert shape(2, 7, 13) == (2, 91)
    assert shape(2) == (2, 1)

    tokens = np.arange(2 * 5 * 3, dtype=np.float32).reshape(2, 5, 3)
    laid = laid_out(tokens, 1.0)
    assert laid.shape == (2, 6, 2, 2)
    assert laid[1, :3, 1, 0].tolist() == tokens[1, 3].tolist()
    assert (laid[1, 3:] == tokens[1, 0].reshape(3, 1, 1)).all()
