"""What a site lets go: the rules of its file, and copies in place of pictures."""

from __future__ import annotations

import errno
import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from splitmesh.client import dataset_log
from splitmesh.client.dataset_log import SyncLog
from splitmesh.client.dataset_sharing import NO_RULE, Rule, Sharing
from splitmesh.client.dataset_thumbnails import make_thumbnail, with_thumbnails
from splitmesh.datasets.freeze import freeze_items
from splitmesh.datasets.item import item_of
from splitmesh.datasets.manifest import Box, Dataset
from splitmesh.errors import MeshError, Reason
from tests.unit.dataset_files import lay, png

ALL: Any = {"train": 1.0, "val": 0.0, "test": 0.0}


def one(**fields: Any) -> Dataset:
    """A dataset of one picture, which is of Lyon."""
    task = "classification" if "label" in fields else "detection"
    item = item_of(png(1, 40, 20), **{"site": "lyon", "camera": "c1", **fields})
    return freeze_items([item], task=task, seed=0, shares=ALL)  # type: ignore[arg-type]


def decided(rules: list[dict[str, Any]], dataset: str = "boards", **fields: Any) -> str:
    """Of one picture."""
    sharing = Sharing(pictures=tuple(Rule(**rule) for rule in rules))
    rule, why = sharing.rule_for(dataset, one(**fields).entries[0])
    return why if rule is None else rule.share


def test_without_a_rule_that_fits_nothing_leaves() -> None:
    assert decided([], label="ng") == NO_RULE
    with pytest.raises(MeshError) as error:
        Sharing().require_manifest("boards")
    assert error.value.reason is Reason.CONTENT_NOT_ALLOWED
    Sharing().require_accepted("boards")


@pytest.mark.parametrize(
    ("rule", "fits"),
    [
        ({}, True),
        ({"datasets": ("boards",)}, True),
        ({"datasets": ("bo*",), "sites": ("l??n",), "cameras": ("c1",), "labels": ("n*",), "splits": ("train",)}, True),
        ({"datasets": ("Boards",)}, False),
        ({"sites": ("paris", "par*")}, False),
        ({"cameras": ("c2",)}, False),
        ({"labels": ("ok",)}, False),
        ({"splits": ("val", "test")}, False),
    ],
)
def test_a_rule_fits_by_name_site_camera_label_and_split(rule: dict[str, Any], fits: bool) -> None:
    assert decided([{**rule, "share": "whole"}], label="ng") == ("whole" if fits else NO_RULE)


def test_the_first_rule_that_fits_decides() -> None:
    rules: list[dict[str, Any]] = [
        {"labels": ("ng",), "share": "nothing"},
        {"share": "thumbnail", "long_side": 64},
        {"share": "whole"},
    ]
    assert decided(rules, label="ng") == "nothing"
    assert decided(rules, label="ok") == "thumbnail"


def test_of_several_labels_all_must_fit_to_let_go_and_one_is_enough_to_keep() -> None:
    boxes = tuple(Box(label=label, x=n, y=0, width=2, height=2) for n, label in enumerate(("bolt", "person")))
    assert decided([{"labels": ("bolt",), "share": "whole"}], boxes=boxes) == NO_RULE
    assert decided([{"labels": ("bolt",), "share": "whole"}], boxes=boxes[:1]) == "whole"
    assert decided([{"labels": ("person",), "share": "nothing"}, {"share": "whole"}], boxes=boxes) == "nothing"
    for share in ("whole", "nothing"):
        assert decided([{"labels": ("person",), "share": share}], boxes=()) == NO_RULE
        assert decided([{"share": share}], boxes=()) == share


YAML = """
schema_version: 1
manifests: [boards-*]
accept: [boards-*]
pictures:
  - datasets: [boards-*]
    share: thumbnail
    long_side: 64
"""


def test_a_file_is_yaml_or_json(tmp_path: Path) -> None:
    lay(tmp_path, {"s.yaml": YAML, "s.json": json.dumps({"manifests": ["boards-*"], "accept": ["boards-*"]})})
    sharing = Sharing.from_file(tmp_path / "s.yaml")
    assert sharing.pictures[0].long_side == 64
    for each in (sharing, Sharing.from_file(tmp_path / "s.json")):
        each.require_manifest("boards-1")
        each.require_accepted("boards-1")
        with pytest.raises(MeshError, match="manifest"):
            each.require_manifest("joints")
        with pytest.raises(MeshError, match="accept"):
            each.require_accepted("joints")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("s.yaml", "schema_version: 2"),
        ("s.yaml", "allow: everything"),
        ("s.yaml", "pictures: [{share: all}]"),
        ("s.yaml", "pictures: [{share: thumbnail}]"),
        ("s.yaml", "pictures: [{share: whole, long_side: 64}]"),
        ("s.yaml", "pictures: [{share: thumbnail, long_side: 1}]"),
        ("s.yaml", "pictures: [{share: whole, splits: [later]}]"),
        ("s.yaml", "pictures: [{share: whole, datasets: []}]"),
        ("s.yaml", "manifests: '*'"),
        ("s.yaml", "- x"),
        ("s.yaml", "manifests: &a [x]\naccept: *a"),
        ("s.json", "{"),
        ("s.json", "[]"),
        ("s.json", "[" * 100_000),
        ("s.yaml", b"\xff"),
    ],
)
def test_a_file_that_says_anything_else_is_refused(tmp_path: Path, name: str, content: Any) -> None:
    lay(tmp_path, {name: content})
    with pytest.raises(MeshError) as error:
        Sharing.from_file(tmp_path / name)
    assert error.value.reason is Reason.FIELD_INVALID
    with pytest.raises(MeshError, match="none"):
        Sharing.from_file(tmp_path / "none.yaml")


def test_a_thumbnail_is_smaller_encoded_anew_and_tells_nothing_else() -> None:
    tags = Image.Exif()
    tags[0x0110], tags[0x0112] = "secret", 6
    stream = io.BytesIO()
    Image.new("RGB", (400, 200), "red").save(stream, "JPEG", exif=tags, comment=b"secret")
    thumbnail, data = make_thumbnail(stream.getvalue(), 100)
    assert (thumbnail.width, thumbnail.height, thumbnail.size_bytes) == (100, 50, len(data))
    assert b"secret" not in data
    assert make_thumbnail(stream.getvalue(), 100)[0] == thumbnail
    same, again = make_thumbnail(stream.getvalue(), 4000)
    assert (same.width, same.height) == (400, 200)
    assert again != stream.getvalue()
    with pytest.raises(MeshError, match="IMAGE_UNDECODABLE"):
        make_thumbnail(b"no picture", 100)


def test_a_dataset_of_thumbnails_has_their_sizes_and_boxes_where_they_were() -> None:
    boxes = (Box(label="bolt", x=10, y=4, width=20, height=8), Box(label="bolt", x=39.999, y=0, width=0.001, height=20))
    dataset = one(boxes=boxes, group="u1")
    thumbnail, _ = make_thumbnail(png(1, 40, 20), 20)
    (entry,) = with_thumbnails(dataset, {dataset.entries[0].picture: thumbnail}).entries
    assert (entry.picture, entry.picture_bytes) == (thumbnail.sha256, thumbnail.size_bytes)
    assert (entry.media_type, entry.width, entry.height) == ("image/jpeg", 20, 10)
    assert (entry.group, entry.split, entry.site) == ("u1", "train", "lyon")
    assert entry.provenance == f"thumbnail of {dataset.entries[0].picture[:16]}"
    first = entry.boxes[0]
    assert (first.x, first.y, first.width, first.height) == (5, 2, 10, 4)
    assert entry.boxes[1].width == 0.01
    kept = with_thumbnails(dataset, {dataset.entries[0].picture: None})
    assert kept.entries == dataset.entries


def test_the_log_keeps_every_line_and_its_last_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, at = SyncLog(tmp_path / "deep" / "sync.jsonl"), datetime(2026, 3, 1, 13, tzinfo=UTC)
    log.add(at, "pushed", {"sent": 3, "by": "ana"})
    log.add(at, "pulled", {"fetched": 1})
    lines = [json.loads(line) for line in (tmp_path / "deep" / "sync.jsonl").read_text().splitlines()]
    assert lines == [
        {"time": "2026-03-01T13:00:00+00:00", "what": "pushed", "sent": 3, "by": "ana"},
        {"time": "2026-03-01T13:00:00+00:00", "what": "pulled", "fetched": 1},
    ]
    monkeypatch.setattr(dataset_log, "MAX_BYTES", 10)
    log.add(at, "pushed", {})
    assert len((tmp_path / "deep" / "sync.jsonl").read_text().splitlines()) == 1
    assert len((tmp_path / "deep" / "sync.jsonl.1").read_text().splitlines()) == 2
    (tmp_path / "file").write_text("x")
    with pytest.raises(MeshError, match=r"SERVICE_UNAVAILABLE: sync\.jsonl cannot be used: File exists"):
        SyncLog(tmp_path / "file" / "sync.jsonl").add(at, "pushed", {})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("splitmesh.client.dataset_log.os.fsync", full)
    with pytest.raises(MeshError, match=r"STORAGE_FULL: sync\.jsonl"):
        log.add(at, "pushed", {})
