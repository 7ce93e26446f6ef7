"""Versions in an OCI image layout: whole or not at all, the same again when they come back, and readable by other tools."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from splitmesh.errors import MeshError, Reason
from splitmesh.export import files as export_files
from splitmesh.export.oci import add_version
from splitmesh.export.oci_format import EMPTY, MODEL, REF_NAME
from splitmesh.export.oci_read import extract, tags_of
from splitmesh.export.record import RECORD, FileDigest, VersionRecord
from splitmesh.model.lineage import DatasetUse, Lineage, VersionName
from splitmesh.testing.parts import find_skopeo, require_part

CONTENTS = {"manifest.json": b"{}\n", "model.onnx": b"\x08\x09" * 700_000, "tables.safetensors": b"t"}
LINEAGE = Lineage(
    parents=(VersionName("backbone", 4),),
    datasets=(DatasetUse("boards", 2, "ab" * 32, "train"),),
    code_version="c0ffee",
    seeds=(7,),
    metrics={"accuracy": 0.97},
)


def version(
    folder: Path, number: int = 1, model: str = "solder", **contents: bytes
) -> tuple[VersionRecord, dict[str, Path]]:
    """A record and its files in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, content in {**CONTENTS, **{key.replace("_", "."): value for key, value in contents.items()}}.items():
        paths[name] = folder / name
        paths[name].write_bytes(content)
    digests = {name: FileDigest(*export_files.digest_of(path)) for name, path in paths.items()}
    made = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
    record = VersionRecord(
        model, number, 0, digests, "import by a@b", made, "first", (), LINEAGE, (b'{"a":1}', b'{"b":2}')
    )
    return record, paths


def document(layout: Path, digest: str) -> dict[str, Any]:
    return dict(json.loads((layout / "blobs" / "sha256" / digest.removeprefix("sha256:")).read_bytes()))


def index(layout: Path) -> list[dict[str, Any]]:
    return list(json.loads((layout / "index.json").read_bytes())["manifests"])


def refused(reason: Reason, *arguments: Any) -> MeshError:
    with pytest.raises(MeshError) as caught:
        arguments[0](*arguments[1:])
    assert caught.value.reason is reason, caught.value
    return caught.value


def test_a_version_comes_back_as_it_went_with_lineage_and_signatures(tmp_path: Path) -> None:
    record, paths = version(tmp_path / "in")
    add_version(tmp_path / "oci", record, paths, ["solder-1"])
    out = tmp_path / "out"
    out.mkdir()
    assert extract(tmp_path / "oci", "", out) == record
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.name != RECORD} == CONTENTS
    assert VersionRecord.from_json((out / RECORD).read_bytes()) == record


def test_the_layout_is_what_the_specification_says(tmp_path: Path) -> None:
    record, paths = version(tmp_path / "in")
    done = add_version(tmp_path / "oci", record, paths, ["solder-1"])
    assert json.loads((tmp_path / "oci" / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    for path in (tmp_path / "oci" / "blobs" / "sha256").iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    (entry,) = [one for one in index(tmp_path / "oci") if one.get("annotations")]
    assert (entry["digest"], entry["annotations"][REF_NAME]) == (done.digest, "solder-1")
    manifest = document(tmp_path / "oci", done.digest)
    assert manifest["artifactType"] == "application/vnd.splitmesh.model.v1"
    assert manifest["mediaType"] == entry["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert manifest["config"]["digest"] == f"sha256:{hashlib.sha256(EMPTY).hexdigest()}"
    titles = {layer["annotations"]["org.opencontainers.image.title"]: layer for layer in manifest["layers"]}
    assert titles.keys() == {*CONTENTS, RECORD}
    assert titles["model.onnx"]["size"] == len(CONTENTS["model.onnx"])
    assert manifest["annotations"]["org.opencontainers.image.revision"] == "c0ffee"
    signatures = [one for one in index(tmp_path / "oci") if one["artifactType"].endswith("dsse.envelope.v1+json")]
    assert len(signatures) == 2
    assert all(document(tmp_path / "oci", one["digest"])["subject"]["digest"] == done.digest for one in signatures)


def test_exporting_again_changes_nothing_and_another_version_is_added(tmp_path: Path) -> None:
    record, paths = version(tmp_path / "one")
    first = add_version(tmp_path / "oci", record, paths, ["solder-1"])
    before = {path: path.read_bytes() for path in (tmp_path / "oci").rglob("*") if path.is_file()}
    again = add_version(tmp_path / "oci", record, paths, ["solder-1"])
    assert (again.digest, again.new_bytes) == (first.digest, 0)
    assert {path: path.read_bytes() for path in (tmp_path / "oci").rglob("*") if path.is_file()} == before
    second, paths = version(tmp_path / "two", 2, model_onnx=b"other")
    done = add_version(tmp_path / "oci", second, paths, ["solder-2", "solder-production"])
    assert done.new_bytes == len(b"other")
    assert tags_of(tmp_path / "oci") == {
        "solder-1": first.digest,
        "solder-2": done.digest,
        "solder-production": done.digest,
    }


def test_a_tag_moves_among_versions_of_a_model_and_never_to_another_model(tmp_path: Path) -> None:
    layout = tmp_path / "oci"
    for number in (1, 2):
        record, paths = version(tmp_path / str(number), number, tables_safetensors=b"t" * number)
        done = add_version(layout, record, paths, [f"solder-{number}", "solder-canary"])
    assert tags_of(layout)["solder-canary"] == done.digest
    other, paths = version(tmp_path / "other", 1, "screws")
    error = refused(Reason.FIELD_INVALID, add_version, layout, other, paths, ["solder-canary"])
    assert "solder:2" in error.message
    changed, paths = version(tmp_path / "changed", 2, tables_safetensors=b"changed")
    refused(Reason.FIELD_INVALID, add_version, layout, changed, paths, ["solder-2"])


def test_signatures_that_came_later_are_added_beside_the_same_version(tmp_path: Path) -> None:
    record, paths = version(tmp_path / "in")
    first = add_version(tmp_path / "oci", replace(record, signatures=()), paths, ["solder-1"])
    again = add_version(tmp_path / "oci", record, paths, ["solder-1"])
    assert again.digest == first.digest
    (tmp_path / "out").mkdir()
    assert extract(tmp_path / "oci", "solder-1", tmp_path / "out").signatures == record.signatures


def test_a_file_that_is_not_what_the_record_says_leaves_nothing_to_see(tmp_path: Path) -> None:
    record, paths = version(tmp_path / "in")
    paths["model.onnx"].write_bytes(b"changed")
    refused(Reason.DIGEST_MISMATCH, add_version, tmp_path / "oci", record, paths, ["solder-1"])
    assert not (tmp_path / "oci" / "index.json").exists()
    assert tags_of(tmp_path / "oci") == {}


def test_a_full_disk_leaves_the_version_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, paths = version(tmp_path / "one")
    first = add_version(tmp_path / "oci", record, paths, ["solder-1"])
    second, paths = version(tmp_path / "two", 2, model_onnx=b"x" * 5_000_000)
    written = 0

    def write(descriptor: int, data: Any) -> int:
        nonlocal written
        written += len(data)
        if written > 2_000_000:
            raise OSError(28, "No space left on device")
        return len(data)

    monkeypatch.setattr(os, "write", write)
    refused(Reason.STORAGE_FULL, add_version, tmp_path / "oci", second, paths, ["solder-2"])
    monkeypatch.undo()
    assert tags_of(tmp_path / "oci") == {"solder-1": first.digest}
    assert not [path.name for path in (tmp_path / "oci").rglob(".splitmesh-*")]


@pytest.mark.parametrize("what", ["blob", "manifest", "record"])
def test_a_content_that_was_changed_is_found_out(tmp_path: Path, what: str) -> None:
    record, paths = version(tmp_path / "in")
    done = add_version(tmp_path / "oci", record, paths, ["solder-1"])
    manifest = document(tmp_path / "oci", done.digest)
    digest = {
        "blob": f"sha256:{record.artifacts['model.onnx'].sha256}",
        "manifest": done.digest,
        "record": next(
            one["digest"]
            for one in manifest["layers"]
            if one["annotations"].get("org.opencontainers.image.title") == RECORD
        ),
    }[what]
    path = tmp_path / "oci" / "blobs" / "sha256" / digest.removeprefix("sha256:")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (tmp_path / "out").mkdir()
    refused(Reason.DIGEST_MISMATCH, extract, tmp_path / "oci", "solder-1", tmp_path / "out")
    assert not (tmp_path / "out" / RECORD).exists()
    if what == "blob":
        add_version(tmp_path / "oci", record, paths, ["solder-1"])
        assert extract(tmp_path / "oci", "solder-1", tmp_path / "out") == record


def relabelled(layout: Path, old: str, new: str) -> None:
    """The layout with one layer's title changed, every digest made right again: a layout that lies."""
    (entry,) = [one for one in index(layout) if one.get("annotations")]
    manifest = document(layout, entry["digest"])
    for layer in manifest["layers"]:
        if layer["annotations"].get("org.opencontainers.image.title") == old:
            layer["annotations"]["org.opencontainers.image.title"] = new
    content = json.dumps(manifest).encode()
    digest = hashlib.sha256(content).hexdigest()
    (layout / "blobs" / "sha256" / digest).write_bytes(content)
    entry |= {"digest": f"sha256:{digest}", "size": len(content)}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))


@pytest.mark.parametrize("name", ["../../escaped", "/etc/escaped", "model.onnx", ".hidden", "a/b"])
def test_names_that_would_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    record, paths = version(tmp_path / "in")
    add_version(tmp_path / "oci", record, paths, ["solder-1"])
    relabelled(tmp_path / "oci", "tables.safetensors", name)
    (tmp_path / "out").mkdir()
    refused(Reason.MODEL_CORRUPT, extract, tmp_path / "oci", "solder-1", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    assert not (tmp_path / "escaped").exists()


def test_what_is_no_layout_is_refused_and_left_alone(tmp_path: Path) -> None:
    record, paths = version(tmp_path / "in")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("x")
    refused(Reason.FIELD_INVALID, add_version, tmp_path / "home", record, paths, ["solder-1"])
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["letter.txt"]
    refused(Reason.FIELD_INVALID, tags_of, tmp_path / "home")
    (tmp_path / "home" / "oci-layout").write_text('{"imageLayoutVersion": "2.0.0"}')
    refused(Reason.FIELD_INVALID, tags_of, tmp_path / "home")
    (tmp_path / "home" / "oci-layout").write_text("[")
    refused(Reason.MODEL_CORRUPT, tags_of, tmp_path / "home")


def test_a_tag_must_be_given_where_there_are_several_and_must_be_there(tmp_path: Path) -> None:
    for number in (1, 2):
        record, paths = version(tmp_path / str(number), number)
        add_version(tmp_path / "oci", record, paths, [f"solder-{number}"])
    refused(Reason.FIELD_INVALID, extract, tmp_path / "oci", "", tmp_path)
    assert "solder-2" in refused(Reason.VERSION_NOT_FOUND, extract, tmp_path / "oci", "solder-3", tmp_path).message
    refused(Reason.FIELD_INVALID, add_version, tmp_path / "oci", record, paths, ["a/b"])


def test_entries_of_other_tools_stay(tmp_path: Path) -> None:
    record, paths = version(tmp_path / "in")
    add_version(tmp_path / "oci", record, paths, ["solder-1"])
    foreign = {
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "digest": "sha512:" + "0" * 128,
        "size": 1,
        "x": [1],
    }
    held = json.loads((tmp_path / "oci" / "index.json").read_bytes())
    held["manifests"].append(foreign)
    (tmp_path / "oci" / "index.json").write_text(json.dumps(held))
    add_version(tmp_path / "oci", record, paths, ["solder-1", "latest"])
    assert foreign in index(tmp_path / "oci")


def test_two_writers_at_once_are_one_and_a_clear_refusal(tmp_path: Path) -> None:
    record, paths = version(tmp_path / "in")
    add_version(tmp_path / "oci", record, paths, ["solder-1"])
    held = os.open(tmp_path / "oci", os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        refused(Reason.QUEUE_FULL, add_version, tmp_path / "oci", record, paths, ["solder-1"])
    finally:
        os.close(held)


def test_skopeo_reads_the_layout_and_copies_it(tmp_path: Path) -> None:
    skopeo = find_skopeo()
    require_part("skopeo", skopeo is not None, "`make real-parts` installs it")
    record, paths = version(tmp_path / "in")
    done = add_version(tmp_path / "oci", record, paths, ["solder-1"])
    raw = subprocess.run(
        [str(skopeo), "inspect", "--raw", f"oci:{tmp_path}/oci:solder-1"], capture_output=True, check=True, timeout=60
    )
    assert hashlib.sha256(raw.stdout).hexdigest() == done.digest.removeprefix("sha256:")
    assert json.loads(raw.stdout)["annotations"][MODEL] == "solder"
    subprocess.run(
        [str(skopeo), "--insecure-policy", "copy", f"oci:{tmp_path}/oci:solder-1", f"oci:{tmp_path}/copy:kept"],
        capture_output=True,
        check=True,
        timeout=60,
    )
    for one in record.artifacts.values():
        copied = tmp_path / "copy" / "blobs" / "sha256" / one.sha256
        assert hashlib.sha256(copied.read_bytes()).hexdigest() == one.sha256
    shutil.rmtree(tmp_path / "copy")
