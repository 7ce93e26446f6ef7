"""`splitmesh datasets` at a site without a registry: manifests that are called by their digest."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from splitmesh.cli import datasets_import
from splitmesh.client import artifacts
from splitmesh.datasets.folder import PictureFolder
from tests.integration.command_line import refused
from tests.integration.dataset_sites import Site, table
from tests.unit.dataset_files import lay, png

REAL = Path(__file__).parents[3] / "shared" / "data" / "solder_joints"


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "site")


def test_an_import_keeps_pictures_and_shows_what_it_took_in(site: Site, tmp_path: Path) -> None:
    source = table(tmp_path / "in")
    shown = site.run(
        "import", source, "--form", "csv", "--name", "boards", "--no-push", "--camera", "c1", "--by", "ana"
    )
    assert shown.code == 0, shown
    assert "kept here, not in the registry: sha256:" in shown.out
    for text in ("train", "bad", "good", "20 x 10", "image/png"):
        assert text in shown.out
    reference = site.take(source, "csv", "--camera", "c1", "--labelled-by", "ana")
    dataset = site.dataset(reference)
    assert (dataset.task, dataset.classes, len(dataset.entries)) == ("classification", ("bad", "good"), 12)
    entry = dataset.entries[0]
    assert (entry.site, entry.camera, entry.labelled_by) == ("lyon", "c1", "ana")
    assert {entry.group for entry in dataset.entries} == {f"u{n}" for n in range(6)}
    folder = PictureFolder(site.folder)
    assert {folder.read(entry.picture) for entry in dataset.entries} == {png(n) for n in range(12)}
    assert site.take(source, "csv", "--camera", "c1", "--labelled-by", "ana") == reference


def test_what_is_at_a_site_is_listed(site: Site, tmp_path: Path) -> None:
    assert "nothing here" in site.run("list", "--here").out
    reference = site.take(table(tmp_path / "in"), "csv")
    (row,) = site.run("list", "--here", "--json").json
    told = {"manifest": reference, "task": "classification", "pictures": 12, "pictures_here": 12}
    assert row == {**told, "classes": ["bad", "good"]}
    assert reference[:23] in site.run("list", "--here").out


def test_shares_and_seed_divide_and_keep_keeps(site: Site, tmp_path: Path) -> None:
    source = table(tmp_path / "in")
    all_train = site.dataset(site.take(source, "csv", "--split", "1,0,0"))
    assert {entry.split for entry in all_train.entries} == {"train"}
    lay(tmp_path / "split", {"train/bad/a.png": png(1), "val/bad/b.png": png(2), "test/good/c.png": png(3)})
    kept = site.dataset(site.take(tmp_path / "split", "imagefolder"))
    assert sorted(entry.split for entry in kept.entries) == ["test", "train", "val"]
    assert kept.statistics.given == 3
    for bad in ("1,1,0", "a,b,c", "1", "0.5,0.5"):
        arguments = (source, "--form", "csv", "--name", "boards", "--no-push", "--split", bad)
        assert "FIELD_INVALID" in site.run("import", *arguments).err


def test_an_import_with_problems_tells_all_of_them_and_keeps_nothing(site: Site, tmp_path: Path) -> None:
    source = table(tmp_path / "in")
    (source / "3.png").write_bytes(b"x")
    (source / "5.png").unlink()
    ended = site.run("import", source, "--form", "csv", "--name", "boards", "--no-push")
    assert ended.code == 1
    assert "'3.png': cannot be decoded" in ended.err
    assert "'5.png': is not there" in ended.err
    assert not site.folder.exists()


def test_two_labels_of_one_picture_are_refused(site: Site, tmp_path: Path) -> None:
    lay(tmp_path / "in", {"bad/a.png": png(1), "good/b.png": png(1), "good/c.png": png(2)})
    ended = site.run("import", tmp_path / "in", "--form", "imagefolder", "--name", "b", "--no-push")
    assert ended.code == 1
    assert "FIELD_INVALID" in ended.err
    assert "good/b.png: shows what bad/a.png shows: 'good', there 'bad'" in ended.err
    assert not site.folder.exists()


@pytest.mark.parametrize("name", ["Boards", "../up", "", "x" * 65])
def test_a_name_that_the_registry_would_refuse_is_refused_before_anything_is_read(
    site: Site, tmp_path: Path, name: str
) -> None:
    source = table(tmp_path / "in")
    refused(site.run("import", source, "--form", "csv", "--name", name, "--no-push"), "FIELD_INVALID")
    assert not site.folder.exists()


def test_without_a_registry_an_import_says_how_to_go_on(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "TRIES", 2)
    ended = site.run("import", table(tmp_path / "in"), "--form", "csv", "--name", "boards")
    (digest,) = PictureFolder(site.folder).manifests()
    assert f"datasets push sha256:{digest[:16]} --name boards" in refused(ended, "SERVICE_UNAVAILABLE")


def test_a_manifest_does_not_travel_where_the_rules_keep_it(site: Site, tmp_path: Path) -> None:
    lay(tmp_path, {"s.yaml": "manifests: [joints]"})
    arguments = (table(tmp_path / "in"), "--form", "csv", "--name", "boards")
    refused(site.run("import", *arguments, "--sharing", tmp_path / "s.yaml"), "CONTENT_NOT_ALLOWED")
    refused(site.run("import", *arguments, SHARING=str(tmp_path / "s.yaml")), "CONTENT_NOT_ALLOWED")
    assert not site.folder.exists()


def test_a_version_is_shown_with_figures_and_light(site: Site, tmp_path: Path) -> None:
    reference = site.take(table(tmp_path / "in"), "csv")
    assert "of 12 pictures 12 are at this site" in site.run("show", reference[:20]).out
    shown = site.run("show", reference, "--light", "--json").json
    assert shown["statistics"]["all"]["labels"] == {"bad": 6, "good": 6}
    assert shown["pictures_at_site"] == 12
    assert sum(one["count"] for one in shown["light"]["brightness"].values()) == 12
    assert "brightness" in site.run("show", reference, "--light").out


@pytest.mark.parametrize("form", ["imagefolder", "csv", "coco"])
def test_what_is_exported_is_imported_as_it_was(site: Site, tmp_path: Path, form: str) -> None:
    reference = site.take(table(tmp_path / "in"), "csv")
    done = site.run("export", reference, "--form", form, "--out", tmp_path / "out", "--json").json
    assert done["written"] == {"pictures": 12, "missing": 0}
    back = site.dataset(Site(site.folder).take(tmp_path / "out", form))
    before = site.dataset(reference)
    assert [(e.picture, e.label, e.split) for e in back.entries] == [
        (e.picture, e.label, e.split) for e in before.entries
    ]
    refused(site.run("export", reference, "--form", form, "--out", tmp_path / "out"), "FIELD_INVALID")
    refused(site.run("export", reference, "--form", "yolo", "--out", tmp_path / "x"), "FIELD_INVALID")


def test_dividing_anew_keeps_groups_together_and_a_difference_is_shown(site: Site, tmp_path: Path) -> None:
    one = site.take(table(tmp_path / "in"), "csv", "--split", "1,0,0")
    made = site.run("split", one, "--split", "0.5,0.25,0.25", "--seed", "4", "--no-push", "--json").json
    other = f"sha256:{made['manifest']}"
    splits: dict[str, set[str]] = {}
    for entry in site.dataset(other).entries:
        splits.setdefault(entry.group, set()).add(entry.split)
    assert all(len(found) == 1 for found in splits.values())
    assert {split for found in splits.values() for split in found} == {"train", "val", "test"}
    third = site.take(table(tmp_path / "more", 14, p0="worse"), "csv", "--split", "1,0,0")
    found = site.run("diff", other, third, "--json").json["difference"]
    moved = [entry for entry in site.dataset(other).entries if entry.split != "train"]
    assert (len(found["added"]), found["removed"]) == (2, [])
    assert [(one["before"], one["after"]) for one in found["relabelled"]] == [("bad", "worse")]
    assert [one["picture"] for one in found["moved"]] == [entry.picture for entry in moved]
    assert (found["classes_added"], found["classes_removed"]) == (["worse"], [])
    assert "classes that are new: worse" in site.run("diff", other, third).out
    refused(site.run("split", one), "FIELD_INVALID")


def test_pictures_that_look_the_same_are_found_across_splits(site: Site, tmp_path: Path) -> None:
    lay(tmp_path / "in", {"train/bad/a.png": png(1, 64, 64), "test/bad/b.png": scaled(png(1, 64, 64))})
    lay(tmp_path / "in", {"val/bad/c.png": png(2, 64, 64)})
    reference = site.take(tmp_path / "in", "imagefolder")
    found = site.run("duplicates", reference, "--similarity", "0.9", "--json").json["near"]
    assert (found["found"], found["leaks"], found["compared"]) == (1, 1, 3)
    shown = site.run("duplicates", reference, "--similarity", "0.9", "--check")
    assert shown.code == 1
    assert "leak" in shown.out
    assert site.run("duplicates", reference, "--similarity", "1", "--distance", "0", "--check").code == 0


def test_pictures_that_look_the_same_come_into_one_split_where_that_is_asked(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"train/bad/{n}.png": png(n, 64, 64) for n in range(6)}
    lay(tmp_path / "in", {**files, **{f"test/bad/s{n}.png": scaled(png(n, 64, 64)) for n in range(6)}})
    reference = site.take(tmp_path / "in", "imagefolder")
    assert site.run("duplicates", reference, "--json").json["near"]["leaks"] == 6
    arguments = ("split", reference, "--split", "0.5,0,0.5", "--no-push", "--json")
    divided = f"sha256:{site.run(*arguments, '--alike-together').json['manifest']}"
    found = site.run("duplicates", divided, "--check", "--json")
    assert (found.code, found.json["near"]["found"], found.json["near"]["leaks"]) == (0, 6, 0)
    monkeypatch.setattr(datasets_import, "MAX_ALIKE", 5)
    assert "6 pairs" in refused(site.run(*arguments, "--alike-together"), "FIELD_INVALID")


def scaled(picture: bytes) -> bytes:
    """The same picture, a little darker."""
    stream = io.BytesIO()
    with Image.open(io.BytesIO(picture)) as image:
        image.point(lambda value: value * 0.9).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("reference", ["sha256:", "sha256:zz", "sha256:abc", "Boards", "boards:x", "a b"])
def test_what_means_no_dataset_is_refused(site: Site, reference: str) -> None:
    refused(site.run("show", reference), "FIELD_INVALID")


def test_a_manifest_that_is_not_here_is_told(site: Site) -> None:
    refused(site.run("show", "sha256:abcd"), "ARTIFACT_NOT_FOUND")
    refused(site.run("delete", "boards"), "FIELD_INVALID")


@pytest.mark.skipif(not REAL.is_dir(), reason="the pictures of ../shared/data are not here")
def test_real_solder_joints_are_taken_in_by_unit(site: Site, tmp_path: Path) -> None:
    (tmp_path / "in" / "images").mkdir(parents=True)
    with (REAL / "labels.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if int(row["unit"]) < 40]
    with (tmp_path / "in" / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        (tmp_path / "in" / row["image"]).write_bytes((REAL / row["image"]).read_bytes())
    dataset = site.dataset(site.take(tmp_path / "in", "csv", "--label-column", "defect"))
    assert len(dataset.entries) == len(rows)
    assert {entry.group for entry in dataset.entries} == {row["unit"] for row in rows}
    by_split: dict[str, Any] = json.loads(site.run("show", f"sha256:{dataset.id}", "--json").out)["statistics"][
        "splits"
    ]
    expected = {split: sum(row["split"] == split for row in rows) for split in ("train", "val", "test")}
    assert {split: part["pictures"] for split, part in by_split.items()} == expected
