"""The solder-joint example: renderer, shipped model, training script and the reader of real data."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from examples.solder_joints import real_data, render
from examples.solder_joints.optics import SITES
from splitmesh.model.preprocess import Preprocess

MODEL = Path(render.__file__).parent / "model"
FRESH_SEED = 20_011
"""Not used by training, which takes 0, 1 and 2 with its default seed."""


def _grey(picture: render.JointPicture) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.asarray(picture.image, dtype=np.uint8)


def test_the_same_seed_renders_the_same_pictures_and_another_seed_does_not() -> None:
    first = [(_grey(p).tobytes(), p.label, p.site, p.severity) for p in render.dataset(6, seed=5)]
    again = [(_grey(p).tobytes(), p.label, p.site, p.severity) for p in render.dataset(6, seed=5)]
    other = [(_grey(p).tobytes(), p.label, p.site, p.severity) for p in render.dataset(6, seed=6)]
    assert first == again
    assert all(a[0] != b[0] for a, b in zip(first, other, strict=True))


def test_a_longer_set_starts_with_the_shorter_one() -> None:
    short, long = list(render.dataset(3, seed=9)), list(render.dataset(5, seed=9))
    assert [_grey(p).tobytes() for p in short] == [_grey(p).tobytes() for p in long[:3]]


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("label", render.LABELS)
def test_every_class_renders_at_every_site(label: str, site: str) -> None:
    picture = render.render(label, site, np.random.default_rng(3))
    assert (picture.label, picture.site, picture.image.mode) == (label, site, "L")
    width, height = picture.image.size
    assert 220 <= width <= 260
    assert 180 <= height <= 220
    assert (picture.severity < 0) == (label == "ok")
    assert abs(picture.severity) <= 1
    assert _grey(picture).std() > 5


def test_unknown_labels_and_sites_are_named_in_the_error() -> None:
    with pytest.raises(ValueError, match="unknown label 'cold'"):
        render.render("cold", "A", np.random.default_rng(0))
    with pytest.raises(ValueError, match="unknown site 'Z'"):
        render.render("ok", "Z", np.random.default_rng(0))


def test_class_shares_sum_to_one_and_cover_every_label() -> None:
    assert tuple(render.PROPORTIONS) == render.LABELS
    assert sum(render.PROPORTIONS.values()) == pytest.approx(1)


def test_sites_differ_in_brightness_and_noise() -> None:
    level, noise = {}, {}
    for site in SITES:
        pictures = [_grey(render.render("ok", site, np.random.default_rng(k))).astype(float) for k in range(8)]
        level[site] = np.mean([np.median(p) for p in pictures])
        noise[site] = np.mean([np.median(np.abs(np.diff(p, axis=1))) for p in pictures])
    assert max(level.values()) > 1.3 * min(level.values())
    assert noise["D"] > 1.5 * noise["A"]


def test_a_jpeg_is_smaller_than_its_pixels_and_decodes_to_the_same_size() -> None:
    picture = render.render("ok", "A", np.random.default_rng(1)).image
    data = render.to_jpeg(picture)
    assert data.startswith(b"\xff\xd8")
    assert len(data) < picture.width * picture.height / 2
    assert Preprocess(width=128, height=128, mode="L").pixels(data).shape == (128, 128, 1)


def test_the_command_writes_a_folder_per_class_and_a_table(tmp_path: Path) -> None:
    render.main(["--out", str(tmp_path), "--n", "8", "--seed", "2", "--sites", "A", "B"])
    with (tmp_path / "labels.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert len(rows) == 8
    for row in rows:
        assert row["image"].startswith(row["label"] + "/")
        assert row["site"] in "AB"
        assert (tmp_path / row["image"]).is_file()


def test_the_shipped_model_is_right_on_fresh_pictures() -> None:
    ort = pytest.importorskip("onnxruntime", reason="needs the edge extra (onnxruntime)")
    session = ort.InferenceSession(str(MODEL / "model.onnx"), providers=["CPUExecutionProvider"])
    (image,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.shape) == ("image", ["batch", 1, 128, 128])
    assert (logits.name, logits.shape) == ("logits", ["batch", len(render.LABELS)])
    assert tuple(json.loads((MODEL / "labels.json").read_text())) == render.LABELS
    preprocess = Preprocess.model_validate_json((MODEL / "preprocess.json").read_text())
    pictures = list(render.dataset(300, FRESH_SEED))
    answers = session.run(["logits"], {"image": preprocess.batch([render.to_jpeg(p.image) for p in pictures])})[0]
    right = np.mean([render.LABELS[k] == p.label for k, p in zip(answers.argmax(axis=1), pictures, strict=True)])
    assert right > 0.9


def test_the_shipped_files_are_small_self_contained_and_name_the_waist() -> None:
    onnx = pytest.importorskip("onnx", reason="needs the cloud extra (onnx)")
    assert (MODEL / "model.onnx").stat().st_size <= 4 * 2**20
    model = onnx.load(MODEL / "model.onnx", load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version <= 10
    assert not any(node.op_type in ("BatchNormalization", "Softmax") for node in model.graph.node)
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert "waist" in {name for node in model.graph.node for name in node.output}


def test_most_of_the_work_is_behind_the_waist() -> None:
    pytest.importorskip("torch", reason="needs the train extra (torch)")
    from examples.solder_joints.network import SolderNet, work

    counts = work(SolderNet(len(render.LABELS)))
    assert 60e6 < sum(counts.values()) < 100e6
    assert counts["tail"] > 0.7 * sum(counts.values())


def test_folding_the_normalisation_keeps_the_answers() -> None:
    torch = pytest.importorskip("torch", reason="needs the train extra (torch)")
    from examples.solder_joints.network import SolderNet, folded

    torch.manual_seed(0)
    network = SolderNet(6, width=16)
    images = torch.randn(4, 1, 128, 128)
    network(images)
    with torch.no_grad():
        torch.testing.assert_close(folded(network)(images), network.eval()(images), rtol=1e-4, atol=1e-5)


def test_a_tiny_training_run_writes_a_usable_folder(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the train extra (torch)")
    from examples.solder_joints import train

    train.main(["--out", str(tmp_path), "--train-n", "24", "--val-n", "8", "--test-n", "8", "--epochs", "1"])
    assert {p.name for p in tmp_path.iterdir()} == {"model.onnx", "preprocess.json", "labels.json", "metrics.json"}
    preprocess = Preprocess.model_validate_json((tmp_path / "preprocess.json").read_text())
    assert (preprocess.width, preprocess.mode) == (128, "L")
    assert preprocess.std[0] > 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["splits"]["test"]["n"] == 8
    given = train.answers(tmp_path / "model.onnx", preprocess, np.zeros((3, 128, 128, 1), np.uint8))
    assert given.shape == (3,)


def test_scores_count_a_confused_defect_as_caught() -> None:
    pytest.importorskip("torch", reason="needs the train extra (torch)")
    from examples.solder_joints.train import score

    result = score(np.array([0, 1, 2, 0]), np.array([0, 0, 1, 2]), ("ok", "a", "b"))
    assert (result.accuracy, result.ng_n, result.ng_recall, result.false_alarms) == (0.25, 2, 0.5, 0.5)
    assert result.per_class["ok"].recall == 0.5
    assert score(np.array([0]), np.array([0]), ("ok", "a")).ng_recall is None


def test_an_absent_folder_of_real_pictures_is_explained(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="point --data at a folder"):
        real_data.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"has no labels\.csv"):
        real_data.load(tmp_path)


def test_a_table_of_real_pictures_is_read_typed_and_checked(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("image,unit,quality,defect,site,split\na.jpg,7,ng,bridge,D,test\n")
    (joint,) = real_data.load(tmp_path)
    assert joint == real_data.Joint(tmp_path / "a.jpg", "7", "ng", "bridge", "D", "test")
    table.write_text("image,unit,quality,defect,site,split\na.jpg,7,maybe,bridge,D,test\n")
    with pytest.raises(ValueError, match="quality is 'maybe'"):
        real_data.load(tmp_path)
    table.write_text("image,unit\na.jpg,7\n")
    with pytest.raises(ValueError, match="lacks the columns quality, defect, site, split"):
        real_data.load(tmp_path)
