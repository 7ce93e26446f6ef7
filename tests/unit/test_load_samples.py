"""Samples read from folders: what is a class, a group, a sample; what is refused; and that nothing is held in memory."""

from __future__ import annotations

import json
import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from splitmesh.compress.load_samples import SPOOL, load_folder, load_pictures
from splitmesh.errors import MeshError, Reason
from splitmesh.model.calibration import GROUPS, LABELS, pack_calibration, unpack_calibration
from splitmesh.model.manifest import Manifest, SegmentInfo, TensorInfo
from splitmesh.model.preprocess import Preprocess

SIDE = 8
DATA = Path(os.environ.get("SPLITMESH_DATA", Path(__file__).parents[3] / "shared" / "data"))


def manifest(labels: tuple[str, ...] = ("ok", "ng"), side: int = SIDE, batch: int = -1) -> Manifest:
    whole = SegmentInfo(
        artifact="model.onnx",
        inputs=(TensorInfo(name="x", dtype="float32", shape=(batch, 1, side, side)),),
        outputs=(TensorInfo(name="y", dtype="float32", shape=(batch, max(2, len(labels)))),),
    )
    preprocess = Preprocess(width=side, height=side, mode="L")
    return Manifest(task="classification" if labels else "raw", labels=labels, preprocess=preprocess, whole=whole)


def picture(path: Path, value: int, side: int = SIDE) -> Path:
    """One grey level, by which a sample is known again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (side, side), value).save(path)
    return path


def values(samples: object) -> list[int]:
    pixels: NDArray[np.uint8] = samples.pictures  # type: ignore[attr-defined]
    return [int(each[0, 0, 0]) for each in pixels]


def refused(source: Path, tmp_path: Path, about: Manifest | None = None, **options: object) -> str:
    with pytest.raises(MeshError) as caught:
        load_folder(source, about or manifest(), tmp_path / "spool", **options)  # type: ignore[arg-type]
    assert caught.value.reason is Reason.FIELD_INVALID
    return caught.value.message


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    return tmp_path / "pictures"


def test_sub_folders_named_like_the_classes_are_classes(source: Path, tmp_path: Path) -> None:
    for number in range(3):
        picture(source / "ok" / f"{number}.png", 10 + number)
        picture(source / "ng" / "deeper" / f"{number}.png", 20 + number)
    picture(source / "unsure.png", 30)
    found = load_folder(source, manifest(), tmp_path / "spool")
    by_value = dict(zip(values(found), (found.labels if found.labels is not None else []), strict=True))
    assert by_value == {10: 0, 11: 0, 12: 0, 20: 1, 21: 1, 22: 1, 30: -1}
    assert found.groups is None
    assert found.sources is not None
    assert [path.is_file() for path in found.sources] == [True] * 7


def test_class_folders_with_other_names_are_refused_and_both_are_named(source: Path, tmp_path: Path) -> None:
    picture(source / "ok" / "0.png", 1)
    picture(source / "broken" / "0.png", 1)
    message = refused(source, tmp_path)
    assert "'broken'" in message
    assert "'ok', 'ng'" in message or "'ng', 'ok'" in message
    message = refused(source, tmp_path, manifest(("cat", "dog")))
    assert "'broken', 'ok'" in message


def test_without_classes_in_the_model_folders_mean_nothing(source: Path, tmp_path: Path) -> None:
    picture(source / "left" / "0.png", 1)
    picture(source / "right" / "0.png", 2)
    found = load_folder(source, manifest(()), tmp_path / "spool")
    assert (values(found), found.labels) == ([1, 2], None)


def test_one_folder_inside_is_no_class(source: Path, tmp_path: Path) -> None:
    picture(source / "images" / "0.png", 1)
    found = load_folder(source, manifest(), tmp_path / "spool")
    assert (values(found), found.labels) == ([1], None)


def table(source: Path, text: str) -> None:
    (source / "labels.csv").write_text(text)


def test_a_table_gives_classes_groups_and_splits(source: Path, tmp_path: Path) -> None:
    for number in range(5):
        picture(source / "images" / f"{number}.png", number)
    table(
        source,
        "image,unit,quality,split\nimages/3.png,b,ng,test\nimages/0.png,a,ok,train\nimages/1.png,,,test\n"
        "images/2.png,b,ok,test\nimages/4.png,,ok,test\n",
    )
    found = load_folder(source, manifest(), tmp_path / "spool")
    assert values(found) == [3, 0, 1, 2, 4]
    assert found.labels is not None
    assert found.groups is not None
    assert found.labels.tolist() == [1, 0, -1, 0, 0]
    b, a, alone, also_b, other = found.groups.tolist()
    assert b == also_b
    assert len({a, b, alone, other}) == 4
    assert values(load_folder(source / "labels.csv", manifest(), tmp_path / "spool", split="test")) == [3, 1, 2, 4]
    assert "no picture of the split 'val'" in refused(source, tmp_path, split="val")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("file,label\n0.png,ok\n", "none of them 'image' or 'path'"),
        ("image,label\n0.png,fine\n", "the model's are 'ok', 'ng'"),
        ("image,label\n../outside.png,ok\n", "is no path below"),
        ("image,label\n/etc/passwd,ok\n", "is no path below"),
        ("image,label\n,ok\n", "line 2: no image"),
        ('image,label\n"0.png,ok\n', "line "),
        ("image,label\n", "no pictures"),
        ("", "none of them"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused(source: Path, tmp_path: Path, text: str, complaint: str) -> None:
    picture(source / "0.png", 1)
    table(source, text)
    assert complaint in refused(source, tmp_path)


def test_a_split_without_a_table_is_refused(source: Path, tmp_path: Path) -> None:
    picture(source / "0.png", 1)
    assert "only a table" in refused(source, tmp_path, split="test")
    table(source, "image,label\n0.png,ok\n")
    assert "no column 'split'" in refused(source, tmp_path, split="test")


def coco(folder: Path, **changes: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "images": [{"id": 7, "file_name": "b.png"}, {"id": 5, "file_name": "a.png"}, {"id": 9, "file_name": "c.png"}],
        "annotations": [
            {"image_id": 5, "category_id": 2, "bbox": [0, 0, 2, 2]},
            {"image_id": 5, "category_id": 1, "bbox": [0, 0, 3, 3]},
            {"image_id": 7, "category_id": 2, "area": 4.0},
        ],
        "categories": [{"id": 1, "name": "ok"}, {"id": 2, "name": "ng"}],
    }
    path = folder / "instances.json"
    path.write_text(json.dumps({**document, **changes}))
    return path


@pytest.mark.parametrize("images", ["images", "annotations", "."])
def test_coco_classes_are_those_of_the_largest_annotation(source: Path, tmp_path: Path, images: str) -> None:
    for number, name in enumerate("abc"):
        picture(source / images / f"{name}.png", number)
    coco(source / "annotations")
    for given in (source, source / "annotations" / "instances.json"):
        found = load_folder(given, manifest(), tmp_path / "spool")
        assert values(found) == [0, 1, 2]
        assert found.labels is not None
        assert found.labels.tolist() == [0, 1, -1]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"categories": [{"id": 1, "name": "ok"}, {"id": 2, "name": "cat"}]}, "'cat'"),
        ({"categories": []}, "is no COCO file"),
        ({"images": [{"id": 7, "file_name": "../../x.png"}]}, "is no path below"),
        ({"images": [3]}, "is no COCO file"),
    ],
)
def test_annotations_that_cannot_be_meant_are_refused(
    source: Path, tmp_path: Path, changes: dict[str, object], complaint: str
) -> None:
    for name in "abc":
        picture(source / f"{name}.png", 1)
    assert complaint in refused(coco(source, **changes), tmp_path)


def test_a_folder_of_annotations_reaches_no_picture_above_it(source: Path, tmp_path: Path) -> None:
    for name in "abc":
        picture(source / f"{name}.png", 1)
    coco(source / "annotations")
    assert "cannot be read" in refused(source / "annotations", tmp_path)
    for name in "abc":
        picture(source / "annotations" / "images" / f"{name}.png", 2)
    assert values(load_folder(source / "annotations", manifest(), tmp_path / "spool")) == [2, 2, 2]


def test_for_a_detector_the_categories_of_annotations_do_not_count(source: Path, tmp_path: Path) -> None:
    for name in "abc":
        picture(source / f"{name}.png", 1)
    found = load_folder(coco(source), manifest(()), tmp_path / "spool")
    assert (found.samples, found.labels) == (3, None)


def test_a_few_broken_pictures_are_left_out_and_counted(source: Path, tmp_path: Path) -> None:
    for number in range(39):
        picture(source / f"{number:02}.png", number)
    (source / "17.png").write_bytes(b"no picture")
    table(
        source, "image,label\n" + "".join(f"{number:02}.png,{'ok' if number % 2 else 'ng'}\n" for number in range(40))
    )
    found = load_folder(source, manifest(), tmp_path / "spool")  # 17 is damaged, 39 is missing
    assert (found.samples, found.unreadable) == (38, 2)
    assert found.labels is not None
    assert [(value % 2 == 0) == bool(label) for value, label in zip(values(found), found.labels, strict=True)] == [
        True
    ] * 38


def test_too_many_broken_pictures_are_refused_by_name(source: Path, tmp_path: Path) -> None:
    for number in range(20):
        picture(source / f"{number:02}.png", number)
    for number in (4, 5):
        (source / f"{number:02}.png").write_bytes(b"no picture")
    message = refused(source, tmp_path)
    assert "04.png" in message
    assert "05.png" in message
    assert "5%" in message
    assert not list((tmp_path / "spool").iterdir())


def test_links_out_of_the_folder_are_refused(source: Path, tmp_path: Path) -> None:
    picture(tmp_path / "private" / "secret.png", 99)
    picture(source / "0.png", 1)
    (source / "inside.png").symlink_to(source / "0.png")
    assert values(load_folder(source, manifest(), tmp_path / "spool")) == [1, 1]
    (source / "link.png").symlink_to(tmp_path / "private" / "secret.png")
    assert "link.png is outside" in refused(source, tmp_path)
    (source / "link.png").unlink()
    (source / "folder").symlink_to(tmp_path / "private")
    assert "is a symbolic link out of" in refused(source, tmp_path)
    (source / "folder").unlink()
    table(source, "image\nlinked/secret.png\n")
    (source / "linked").symlink_to(tmp_path / "private")
    assert "is outside" in refused(source, tmp_path)


def test_a_pipe_named_like_a_picture_is_not_waited_for(source: Path, tmp_path: Path) -> None:
    for number in range(25):
        picture(source / f"{number}.png", number)
    os.mkfifo(source / "z.png")
    assert load_folder(source, manifest(), tmp_path / "spool").unreadable == 1


def test_a_limit_takes_samples_evenly_and_not_the_first_class(source: Path, tmp_path: Path) -> None:
    for number in range(10):
        picture(source / "ng" / f"{number}.png", number)
        picture(source / "ok" / f"{number}.png", 100 + number)
    found = load_folder(source, manifest(), tmp_path / "spool", limit=5)
    assert found.labels is not None
    assert sorted(found.labels.tolist()) == [0, 0, 1, 1, 1]


@pytest.mark.parametrize("empty", ["nothing", "no pictures", "not there"])
def test_nothing_to_read_is_refused(source: Path, tmp_path: Path, empty: str) -> None:
    if empty == "no pictures":
        (source / "readme.txt").write_text("hello")
    refused(source / "away" if empty == "not there" else source, tmp_path)


def test_a_model_that_takes_tensors_gets_no_pictures(source: Path, tmp_path: Path) -> None:
    picture(source / "0.png", 1)
    about = manifest().model_copy(update={"preprocess": None})
    assert "takes tensors" in refused(source, tmp_path, about)


def test_a_full_disk_is_said_before_anything_is_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(source / "0.png", 1)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=SIDE * SIDE - 1))
    with pytest.raises(MeshError) as caught:
        load_folder(source, manifest(), tmp_path / "spool")
    assert caught.value.reason is Reason.STORAGE_FULL


def test_a_model_of_a_fixed_batch_needs_that_many(source: Path, tmp_path: Path) -> None:
    picture(source / "0.png", 1)
    with pytest.raises(MeshError) as caught:
        load_folder(source, manifest(batch=4), tmp_path / "spool")
    assert caught.value.reason is Reason.CALIBRATION_INSUFFICIENT


def test_pixels_lie_in_a_file_and_one_picture_is_in_memory(source: Path, tmp_path: Path) -> None:
    side, count = 256, 120
    for number in range(count):
        picture(source / f"{number:03}.png", number, side)
    about = manifest(side=side)
    load_folder(source, about, tmp_path / "spool", limit=2)  # imports and caches are not what is measured
    tracemalloc.start()
    try:
        found = load_folder(source, about, tmp_path / "spool")
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(found.pictures, np.memmap)
    assert (tmp_path / "spool" / SPOOL).stat().st_size == count * side * side
    assert most < count * side * side / 4
    assert values(found) == list(range(count))
    feed = found.feeds(np.array([5, 100], dtype=np.int64))["x"]
    assert feed[:, 0, 0, 0].tolist() == [
        np.float32(np.float32(5) * (np.float32(1) / np.float32(255))),
        feed[1, 0, 0, 0],
    ]


def test_reading_again_gives_the_same_samples(source: Path, tmp_path: Path) -> None:
    for number in range(6):
        picture(source / ("ok" if number % 2 else "ng") / f"{number}.png", number)
    first, again = (load_folder(source, manifest(), tmp_path / name) for name in ("one", "two"))
    assert values(first) == values(again)
    assert first.labels is not None
    assert again.labels is not None
    assert first.labels.tolist() == again.labels.tolist()


def test_progress_counts_every_picture(source: Path, tmp_path: Path) -> None:
    for number in range(3):
        picture(source / f"{number}.png", number)
    told: list[tuple[int, int]] = []
    load_folder(source, manifest(), tmp_path / "spool", on_progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_packed_file_is_read_with_its_classes_and_groups(tmp_path: Path) -> None:
    pixels = np.arange(4, dtype=np.uint8).repeat(SIDE * SIDE).reshape(4, SIDE, SIDE, 1)
    labels, groups = np.array([0, -1, 1, 1]), np.array([3, 3, 9, 1])
    packed = tmp_path / "calibration.safetensors"
    packed.write_bytes(pack_calibration(pixels, labels=labels, groups=groups))
    found = load_folder(packed, manifest(), tmp_path / "spool")
    assert found.labels is not None
    assert found.groups is not None
    assert (values(found), found.labels.tolist(), found.groups.tolist()) == ([0, 1, 2, 3], [0, -1, 1, 1], [3, 3, 9, 1])
    assert values(load_folder(packed, manifest(), tmp_path / "spool", limit=2)) == [0, 2]


def test_frames_of_a_camera_become_samples(source: Path, tmp_path: Path) -> None:
    data = [picture(source / f"{number}.png", number).read_bytes() for number in range(30)]
    found = load_pictures([*data[:10], b"torn", *data[10:]], manifest(), tmp_path / "spool")
    assert (values(found), found.unreadable) == (list(range(30)), 1)
    assert values(load_pictures(data, manifest(), tmp_path / "spool", limit=4)) == [0, 1, 2, 3]


SPOILT: list[Callable[[dict[str, NDArray[np.generic]]], None]] = [
    lambda tensors: tensors.update({LABELS: np.array([0, 1, 2, 0])}),
    lambda tensors: tensors.update({LABELS: np.array([0, 1, -2, 0])}),
    lambda tensors: tensors.update({LABELS: np.array([0, 1])}),
    lambda tensors: tensors.update({LABELS: np.zeros((4, 1), dtype=np.int64)}),
    lambda tensors: tensors.update({GROUPS: np.zeros(4, dtype=np.float32)}),
]


@pytest.mark.parametrize("spoil", SPOILT)
def test_packed_classes_that_do_not_fit_are_refused(spoil: Callable[[dict[str, NDArray[np.generic]]], None]) -> None:
    from safetensors.numpy import save

    tensors: dict[str, NDArray[np.generic]] = {"pixels": np.zeros((4, SIDE, SIDE, 1), dtype=np.uint8)}
    spoil(tensors)
    with pytest.raises(MeshError) as caught:
        unpack_calibration(save(tensors), manifest())
    assert caught.value.reason is Reason.PAYLOAD_CORRUPT


def test_an_input_named_like_the_classes_is_the_input() -> None:
    inputs = tuple(TensorInfo(name=name, dtype="int64", shape=(-1,)) for name in (LABELS, "other"))
    about = Manifest(
        task="raw",
        whole=SegmentInfo(
            artifact="model.onnx", inputs=inputs, outputs=(TensorInfo(name="y", dtype="float32", shape=(-1, 2)),)
        ),
    )
    given = {LABELS: np.array([5, 6]), "other": np.array([1, 2])}
    found = unpack_calibration(pack_calibration(given), about)
    assert found.labels is None
    assert found.feeds(slice(0, 2))[LABELS].tolist() == [5, 6]
    with pytest.raises(MeshError, match="name of an input"):
        pack_calibration(given, labels=np.array([0, 1]))


@pytest.mark.skipif(not (DATA / "solder_joints").is_dir(), reason=f"needs the pictures of solder joints in {DATA}")
def test_real_pictures_come_with_their_units_and_qualities(tmp_path: Path) -> None:
    found = load_folder(DATA / "solder_joints", manifest(side=32), tmp_path / "spool", split="val")
    assert found.samples == 401
    assert found.unreadable == 0
    assert found.labels is not None
    assert found.groups is not None
    assert set(found.labels.tolist()) == {0, 1}
    assert 1 < len(set(found.groups.tolist())) < 401
