"""`splitmesh samples` on a head's folder on its host, beside a head that goes on, and against heads over the wire."""

from __future__ import annotations

import asyncio
import csv
import hashlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from splitmesh.datasets.folder import PictureFolder
from splitmesh.samples.record import new_id
from splitmesh.samples.store import SampleStore
from tests.integration.command_line import Ended, refused, splitmesh, splitmesh_here
from tests.integration.kept_samples import ROOMY, serving
from tests.unit.sample_records import NOW, add, picture, sample, spread

UNKNOWN = new_id(NOW, bytes(10))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SampleStore]:
    """Of a head that runs: it holds the folder all the time."""
    with SampleStore(tmp_path / "head" / "samples", ROOMY) as store:
        yield store


@pytest.fixture
def head(tmp_path: Path) -> Path:
    return tmp_path / "head"


def here(head: Path, *arguments: object) -> Ended:
    return splitmesh_here("samples", *arguments, "--data-dir", head)


def test_a_list_shows_what_is_known_of_each_sample(store: SampleStore, head: Path) -> None:
    told = {"exit_label": "good", "exit_confidence": 0.5, "tail_label": "bad", "tail_confidence": 0.75, "ease": 0.123}
    first = add(store, 1, kind="disputed", **told)
    second = add(store, 2, camera="line-2")
    store.label(second.id, "good", "ana", NOW)
    listed = here(head, "list", "--json").json
    assert [one["id"] for one in listed] == [second.id, first.id]
    assert listed[1]["tail_label"] == "bad"
    assert listed[1]["captured_at"] == "2025-03-04T10:01:00.000000+00:00"
    assert listed[0]["duplicates"] == 0
    lines = here(head, "list").out.splitlines()
    (line,) = (line for line in lines if first.id in line)
    for text in ("2025-03-04 10:01:00", "line-1", "disputed", "EASE_LOW", "good -> bad", "0.12"):
        assert text in line
    assert "? -> ?" in here(head, "list", "--camera", "line-2").out


def test_a_list_is_chosen_by_what_is_known(store: SampleStore, head: Path) -> None:
    one = add(store, 1, camera="a", kind="audit")
    two = add(store, 2, model="cells", kind="disputed")
    three = add(store, 3)
    store.label(three.id, "bad", "ana", NOW)
    for options, found in (
        (["--camera", "a"], [one]),
        (["--kind", "audit", "--kind", "disputed"], [two, one]),
        (["--model", "cells"], [two]),
        (["--labelled"], [three]),
        (["--unlabelled"], [two, one]),
        (["--label", "bad"], [three]),
        (["--since", "2025-03-04T10:02+00:00"], [three, two]),
        (["--until", "2025-03-04T10:02+00:00"], [one]),
        (["--limit", "2"], [three, two]),
        (["--camera", "b"], []),
    ):
        listed = here(head, "list", "--json", *options).json
        assert [entry["id"] for entry in listed] == [record.id for record in found], options
    assert "no samples" in here(head, "list", "--camera", "b").out
    for bad in (["--kind", "easy"], ["--since", "yesterday"]):
        assert bad[0].removeprefix("--") in refused(here(head, "list", *bad), "FIELD_INVALID")


def test_one_sample_is_shown_with_its_history_and_its_contents(store: SampleStore, head: Path, tmp_path: Path) -> None:
    kept = add(store, 1)
    store.label(kept.id, "bad", "ana", NOW)
    store.label(kept.id, None, "bo", NOW)
    shown = here(
        head, "show", kept.id, "--json", "--picture", tmp_path / "p.png", "--thumbnail", tmp_path / "t.jpg"
    ).json
    assert shown["picture"] == kept.picture
    assert [(entry["label"], entry["by"]) for entry in shown["history"]] == [("bad", "ana"), (None, "bo")]
    assert (tmp_path / "p.png").read_bytes() == picture(spread(1))
    with Image.open(tmp_path / "t.jpg") as small:
        assert small.format == "JPEG"
    table = here(head, "show", kept.id).out
    assert "taken back" in table
    assert str(kept.picture) in table
    assert UNKNOWN in refused(here(head, "show", UNKNOWN), "SAMPLE_NOT_FOUND")
    refused(here(head, "show", kept.id, "--features", tmp_path / "f"), "ARTIFACT_NOT_FOUND")


def test_labels_are_given_one_by_one_or_by_a_table(store: SampleStore, head: Path, tmp_path: Path) -> None:
    one, two = add(store, 1), add(store, 2)
    assert here(head, "label", one.id, "bad", "--by", "ana", "--json").json["changed"]
    assert "as before" in here(head, "label", one.id, "bad", "--by", "ana").out
    assert store.get(one.id).record.labelled_by == "ana"
    here(head, "label", one.id, "--clear", "--by", "ana")
    assert store.get(one.id).record.label is None
    table = tmp_path / "said.csv"
    table.write_text(f"id,label\n{one.id},good\n{two.id},bad\n")
    assert here(head, "label", "--file", table, "--by", "bo", "--json").json == {"samples": 2, "changed": 2}
    assert [store.get(record.id).record.label for record in (one, two)] == ["good", "bad"]
    table.write_text(f"id,label\n{one.id},other\n{UNKNOWN},bad\n")
    assert UNKNOWN in here(head, "label", "--file", table).err
    assert store.get(one.id).record.label == "good"
    for bad in ([one.id], [one.id, "x", "--clear"], [], [one.id, "x", "--file", table], [one.id, "x" * 201]):
        refused(here(head, "label", *bad), "FIELD_INVALID")
    refused(here(head, "label", UNKNOWN, "x"), "SAMPLE_NOT_FOUND")


def test_an_export_comes_back_labelled(store: SampleStore, head: Path, tmp_path: Path) -> None:
    one, two = add(store, 1), add(store, 2)
    store.add(sample(3))
    assert here(head, "export", tmp_path / "set", "--format", "folder", "--json").json == {
        **{"pictures": 2, "labelled": 0, "without_picture": 1, "gone": 0, "damaged": 0}
    }
    (tmp_path / "set" / "bad").mkdir()
    (tmp_path / "set" / "_unlabelled" / f"{one.picture}.png").rename(tmp_path / "set" / "bad" / f"{one.picture}.png")
    assert here(head, "import", tmp_path / "set", "--format", "folder", "--json").json == {"samples": 1, "changed": 1}
    assert (store.get(one.id).record.label, store.get(two.id).record.label) == ("bad", None)
    here(head, "export", tmp_path / "coco", "--format", "coco", "--labelled")
    document = json.loads((tmp_path / "coco" / "annotations.json").read_text())
    assert [entry["sample"] for entry in document["images"]] == [one.id]
    document["categories"][0]["name"] = "good"
    (tmp_path / "coco" / "annotations.json").write_text(json.dumps(document))
    here(head, "import", tmp_path / "coco", "--by", "ana")  # its annotations say what it is
    assert store.get(one.id).record.label == "good"
    (tmp_path / "classes.txt").write_text("fine\n")
    assert "good" in here(head, "import", tmp_path / "coco", "--classes", tmp_path / "classes.txt").err
    refused(here(head, "import", tmp_path / "set"), "FIELD_INVALID")
    refused(here(head, "export", tmp_path / "set", "--format", "coco"), "FIELD_INVALID")
    refused(here(head, "export", tmp_path / "new", "--format", "zip"), "FIELD_INVALID")
    assert not (tmp_path / "new").exists()


def test_frozen_samples_are_a_dataset_that_outlives_them(store: SampleStore, head: Path, tmp_path: Path) -> None:
    records = [add(store, 60 * n) for n in range(12)]
    for n, record in enumerate(records[:-1]):
        store.label(record.id, ("bad", "good")[n % 2], "ana", NOW)
    site = PictureFolder(tmp_path / "site")
    kept = ("--folder", tmp_path / "site", "--no-push")
    made = here(head, "freeze", "first", *kept, "--seed", "3", "--json").json
    dataset = site.manifest(made["manifest"])
    assert len(dataset.entries) == 11
    assert not site.missing([entry.picture for entry in dataset.entries])
    assert {entry.provenance for entry in dataset.entries} == {f"sample {one.id}" for one in records[:-1]}
    assert made["left_out"]["unlabelled"] == 1
    assert here(head, "freeze", "first", *kept, "--seed", "3", "--json").json == made
    store.label(records[-1].id, "bad", "ana", NOW)
    again = here(head, "freeze", "first", *kept, "--seed", "3", "--json").json
    assert again["manifest"] != made["manifest"]
    assert set(site.manifests()) == {made["manifest"], again["manifest"]}
    table = here(head, "freeze", "second", *kept, "--split", "0.5,0.5,0").out
    assert "bad" in table
    assert "train" in table
    refused(here(head, "freeze", "../up", *kept), "FIELD_INVALID")
    refused(here(head, "freeze", "third", *kept, "--split", "0.9,0.2,0"), "FIELD_INVALID")
    refused(here(head, "freeze", "third", *kept, "--camera", "nobody's"), "CALIBRATION_INSUFFICIENT")


def test_a_damaged_picture_is_left_out_of_what_is_frozen_and_said(
    store: SampleStore, head: Path, tmp_path: Path
) -> None:
    records = [add(store, 60 * n) for n in range(6)]
    for record in records:
        store.label(record.id, "good", "ana", NOW)
    (file,) = head.rglob(str(records[2].picture))
    file.write_bytes(b"something else")
    ended = here(head, "freeze", "first", "--folder", tmp_path / "site", "--no-push")
    assert "left out: 1 whose picture was gone or damaged" in ended.out
    (manifest,) = PictureFolder(tmp_path / "site").manifests()
    assert len(PictureFolder(tmp_path / "site").manifest(manifest).entries) == 5


def test_freezing_again_mends_what_the_site_kept_and_makes_it_young(
    store: SampleStore, head: Path, tmp_path: Path
) -> None:
    for n in range(4):
        store.label(add(store, 60 * n).id, "good", "ana", NOW)
    command = ("freeze", "first", "--folder", tmp_path / "site", "--no-push", "--split", "1,0,0", "--json")
    manifest, site = here(head, *command).json["manifest"], PictureFolder(tmp_path / "site")
    pictures = [entry.picture for entry in site.manifest(manifest).entries]
    files = [path for path in (tmp_path / "site" / "pictures").rglob("?" * 64) if path.is_file()]
    files[0].write_bytes(b"damaged")
    for file in files:
        os.utime(file, (1000, 1000))
    site.drop_manifest(manifest)
    assert here(head, *command).json["manifest"] == manifest
    assert all(hashlib.sha256(site.read(picture)).hexdigest() == picture for picture in pictures)
    site.drop_manifest(manifest)
    assert site.remove_unused(2000).pictures == 0


def test_counts_say_what_was_dropped(store: SampleStore, head: Path) -> None:
    add(store, 1, camera="a")
    store.count_dropped({"QUEUE_FULL": 3})
    (counts,) = here(head, "counts", "--json").json
    assert (counts["samples"], counts["dropped"], counts["by_camera"]) == (1, {"QUEUE_FULL": 3}, {"a": 1})
    assert "3 QUEUE_FULL" in here(head, "counts").out


def test_a_folder_without_samples_and_a_folder_beside_a_head_are_refused(tmp_path: Path) -> None:
    assert "data-dir" in refused(here(tmp_path, "list"), "FIELD_INVALID")
    assert "--head" in refused(here(tmp_path, "list", "--head", "127.0.0.1:1"), "FIELD_INVALID")
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "samples.sqlite").write_bytes(b"no database" * 1000)
    refused(here(tmp_path, "list"), "SERVICE_UNAVAILABLE")


def test_the_folder_of_the_samples_itself_and_those_of_several_processes_do_too(tmp_path: Path) -> None:
    for number in (1, 2):
        with SampleStore(tmp_path / f"replica-{number}" / "samples", ROOMY) as store:
            add(store, number)
    assert len(here(tmp_path, "list", "--json").json) == 2
    assert len(here(tmp_path / "replica-1", "list", "--json").json) == 1
    assert len(here(tmp_path / "replica-1" / "samples", "list", "--json").json) == 1


async def test_heads_are_asked_over_the_wire_and_give_what_they_may(
    store: SampleStore, head: Path, tmp_path: Path
) -> None:
    one, two = add(store, 1), add(store, 2)
    async with serving(head, sample_sharing="picture") as open_, serving(head) as closed:
        export = ("export", tmp_path / "set", "--format", "folder", "--json")
        listed, exported, counted, denied = await asyncio.gather(
            splitmesh("samples", "list", "--json", HEAD=open_),
            splitmesh("samples", *export, "--head", open_),
            splitmesh("samples", "counts", "--json", STATIC_ADDRESSES=f"head={open_}"),
            splitmesh("samples", "export", tmp_path / "none", "--format", "coco", HEAD=closed),
        )
        assert [entry["id"] for entry in listed.json] == [two.id, one.id]
        assert exported.json["pictures"] == 2
        assert [(one["head"], one["samples"], one["allowed"]) for one in counted.json] == [("mec-1", 2, ["picture"])]
        assert "picture" in refused(denied, "CONTENT_NOT_ALLOWED")
        assert not (tmp_path / "none").exists()
        rows = list(csv.DictReader(io.StringIO((tmp_path / "set" / "labels.csv").read_text())))
        assert {row["id"] for row in rows} == {one.id, two.id}
        (tmp_path / "said.csv").write_text(f"image,label\n{rows[0]['image']},bad\n")
        said = await splitmesh("samples", "import", tmp_path / "said.csv", "--json", HEAD=closed)
        assert said.json == {"samples": 1, "changed": 1}
        assert store.get(rows[0]["id"]).record.label == "bad"
