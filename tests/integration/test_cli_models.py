"""`splitmesh models` against a real registry that takes signed versions only, in the order of a version's life."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from onnx import helper

from splitmesh.export.oci_format import SIGNATURE_TYPE
from splitmesh.export.record import RECORD
from splitmesh.model.manifest import MANIFEST, WHOLE
from splitmesh.testing.keys import OPERATOR, MeshKeys
from tests.integration.command_line import model_files, refused, splitmesh_here
from tests.integration.models_desk import MODEL, Desk, put_keyring, registry_process
from tests.integration.small_model import CUT, small_model


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("desk")
    model_files(folder)
    keys = MeshKeys(folder / "keys")
    with pytest.MonkeyPatch.context() as patch, registry_process(folder, keys.settings("registry")) as address:
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        asyncio.run(put_keyring(address, keys.keyring))
        yield Desk(folder, f"registry={address}", keys)


@pytest.fixture(scope="module")
def imported(desk: Desk) -> Desk:
    """Version 1, and version 2 made from it and from a backbone."""
    first = desk.import_("--metric", "accuracy=0.91", "--seed", 7, "--task", "train-1", "--code-version", "c0ffee")
    assert first.json["version"] == 1
    backbone = desk.import_(name="backbone")
    assert backbone.json["version"] == 1
    (desk.folder / "small.onnx").write_bytes(small_model(note="second"))
    second = desk.import_("--parent", 1, "--from-model", "backbone:1", "--description", "second try")
    assert second.json["version"] == 2
    return desk


def test_an_import_says_what_it_was_made_of_who_did_and_who_signed(imported: Desk) -> None:
    shown = (imported.run("models", "show", f"{MODEL}:1", "--json")).json
    lineage = shown["version"]["lineage"]
    assert lineage["metrics"] == {"accuracy": 0.91}
    assert (lineage["seeds"], lineage["task"], lineage["code_version"]) == ([7], "train-1", "c0ffee")
    assert shown["version"]["created_by"].startswith("import by ")
    assert [(one["name"], one["verdict"]) for one in shown["signers"]] == [(OPERATOR, "good")]
    table = (imported.run("models", "show", f"{MODEL}:2")).out
    assert "│ whole " in table
    assert "│ manifest " in table
    assert "second try" in table
    assert "backbone:1" in table
    assert OPERATOR in table


def test_lineage_is_a_tree_across_models_down_to_the_roots(imported: Desk) -> None:
    tree = (imported.run("models", "lineage", f"{MODEL}:2", "--json")).json
    assert tree["name"] == f"{MODEL}:2"
    above = {(one["relation"], one["name"]): one for one in tree["parents"]}
    assert above.keys() == {("parent", f"{MODEL}:1"), ("model", "backbone:1")}
    facts = above["parent", f"{MODEL}:1"]["facts"]
    assert (facts["metrics"], facts["seeds"], facts["code_version"]) == ({"accuracy": 0.91}, [7], "c0ffee")
    assert above["model", "backbone:1"]["parents"] == []
    text = (imported.run("models", "lineage", f"{MODEL}:2")).out
    assert f"parent: {MODEL}:1" in text
    assert "seeds 7, accuracy 0.91" in text


def test_aliases_move_with_history_and_only_from_where_they_are_expected(imported: Desk) -> None:
    run = imported.run
    moved = run("models", "promote", f"{MODEL}:1", "--alias", "canary", "--reason", "looks good", "--by", "ann")
    assert moved.out == f"{MODEL}@canary: nowhere -> 1\n"
    wrong = run("models", "promote", f"{MODEL}:2", "--alias", "canary", "--expect", 2)
    refused(wrong, "ALIAS_MOVED")
    moved = run("models", "promote", f"{MODEL}:2", "--alias", "canary", "--expect", 1, "--json")
    assert moved.json == {"model": MODEL, "alias": "canary", "previous_version": 1, "version": 2}
    in_use = refused(run("models", "delete", f"{MODEL}@canary"), "VERSION_IN_USE")
    assert "canary" in in_use
    assert (run("models", "demote", MODEL, "--alias", "canary")).out == f"{MODEL}@canary: 2 -> nowhere\n"
    moves = (run("models", "history", MODEL, "--alias", "canary", "--json")).json
    assert [(one["previous"], one["version"]) for one in moves] == [(2, 0), (1, 2), (0, 1)]
    assert (moves[-1]["moved_by"], moves[-1]["reason"]) == ("ann", "looks good")
    assert "nowhere" in (run("models", "history", MODEL)).out


def test_a_pulled_folder_is_verified_without_the_registry_and_found_out_when_changed(
    imported: Desk, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert (imported.run("models", "pull", f"{MODEL}:1", "-o", out, "--limit-mbit", 800)).code == 0
    assert {path.name for path in out.iterdir()} == {WHOLE, MANIFEST, RECORD}
    other = imported.run("models", "pull", f"{MODEL}:2", "-o", tmp_path / "two", "--base", out)
    assert other.code == 0, other
    assert (tmp_path / "two" / WHOLE).read_bytes() == small_model(note="second")
    settings = {name.upper(): value for name, value in imported.keys.settings(OPERATOR).items()}
    verified = splitmesh_here("models", "verify", out, "--json", STATIC_ADDRESSES="registry=127.0.0.1:1", **settings)
    assert verified.json["trusted"] is True
    assert verified.json["artefacts"] == {WHOLE: "right", MANIFEST: "right"}
    content = bytearray((out / WHOLE).read_bytes())
    content[-1] ^= 1
    (out / WHOLE).write_bytes(content)
    assert WHOLE in refused(imported.run("models", "verify", out), "DIGEST_MISMATCH")
    refused(imported.run("models", "sign", f"{MODEL}:1", "--against", out), "DIGEST_MISMATCH")
    (out / WHOLE).write_bytes(small_model())
    (out / "added.bin").write_bytes(b"x")
    assert "added.bin" in refused(imported.run("models", "verify", out), "DIGEST_MISMATCH")


def test_verify_tells_good_signatures_from_those_of_other_contents(imported: Desk, tmp_path: Path) -> None:
    good = imported.run("models", "verify", f"{MODEL}:1", "--json")
    assert (good.json["trusted"], [one["verdict"] for one in good.json["signers"]]) == (True, ["good"])
    unset = imported.run("models", "verify", f"{MODEL}:1", trusting=False)
    assert (unset.code, "not verified" in unset.err) == (0, True)
    out = tmp_path / "out"
    imported.run("models", "pull", f"{MODEL}:1", "-o", out)
    record = json.loads((out / RECORD).read_text())
    record["parent"] = 9
    (out / RECORD).write_text(json.dumps(record))
    refused(imported.run("models", "verify", out), "SIGNATURE_INVALID")
    record["signatures"] = []
    (out / RECORD).write_text(json.dumps(record))
    refused(imported.run("models", "verify", out), "SIGNATURE_MISSING")


def test_a_second_key_signs_beside_the_first(imported: Desk) -> None:
    signed = imported.run("models", "sign", f"{MODEL}:1", key="partitioner")
    assert f"{MODEL} version 1 is signed by key " in signed.out
    shown = (imported.run("models", "show", f"{MODEL}:1", "--json")).json
    assert {one["name"] for one in shown["signers"]} == {OPERATOR, "partitioner"}
    events = (imported.run("models", "log", MODEL, "--json")).json
    assert "version.signed" in {one["kind"] for one in events}
    assert all(one["key_ids"] for one in events if one["kind"] == "version.created")
    refused(imported.run("models", "sign", f"{MODEL}:1", trusting=False), "FIELD_INVALID")


def test_a_version_goes_to_an_oci_layout_and_comes_back_with_its_lineage(imported: Desk, tmp_path: Path) -> None:
    layout = tmp_path / "oci"
    made = imported.run("models", "export", f"{MODEL}:2", "--oci", layout, "--json")
    assert made.json["tags"] == [f"{MODEL}-2"]
    assert not list(layout.glob(".splitmesh-*"))
    again = imported.run("models", "export", f"{MODEL}:2", "--oci", layout, "--tag", "kept", "--json")
    assert (again.json["digest"], again.json["new_bytes"]) == (made.json["digest"], 0)
    back = imported.run("models", "import", "--oci", f"{layout}:kept", "--name", "copied", "--json")
    assert back.json["artifacts"][WHOLE]["sha256"] == made_digest(small_model(note="second"))
    assert back.json["lineage"]["parents"] == [{"model": "backbone", "version": 1}]
    whole = layout / "blobs" / "sha256" / made_digest(small_model(note="second"))
    whole.write_bytes(whole.read_bytes()[:-1])
    refused(imported.run("models", "import", "--oci", f"{layout}:kept"), "DIGEST_MISMATCH")


def test_a_version_whose_signatures_were_taken_away_comes_back_in_only_where_that_is_said(
    imported: Desk, tmp_path: Path
) -> None:
    layout, out = tmp_path / "oci", tmp_path / "out"
    imported.run("models", "export", f"{MODEL}:2", "--oci", layout)
    imported.run("models", "pull", f"{MODEL}:2", "-o", out)
    index = json.loads((layout / "index.json").read_text())
    index["manifests"] = [one for one in index["manifests"] if one.get("artifactType") != SIGNATURE_TYPE]
    (layout / "index.json").write_text(json.dumps(index))
    record = json.loads((out / RECORD).read_text())
    (out / RECORD).write_text(json.dumps({**record, "signatures": []}))
    for source in (("--oci", layout), (out,)):
        assert "--unsigned" in refused(imported.run("models", "import", *source, "--name", "back"), "SIGNATURE_MISSING")
        back = imported.run("models", "import", *source, "--name", "back", "--unsigned", "--json")
        shown = imported.run("models", "show", f"back:{back.json['version']}", "--json")
        assert [(one["name"], one["verdict"]) for one in shown.json["signers"]] == [(OPERATOR, "good")]
    (out / RECORD).write_text(json.dumps({**record, "parent": 9}))
    refused(imported.run("models", "import", out, "--name", "back", "--unsigned"), "SIGNATURE_INVALID")
    assert imported.run("models", "import", out, "--name", "back", "--dry-run", trusting=False).code == 0


def made_digest(content: bytes) -> str:

    return hashlib.sha256(content).hexdigest()


def test_a_folder_of_parts_becomes_one_version(imported: Desk, tmp_path: Path) -> None:
    halves = tmp_path / "halves"
    assert (imported.run("split", imported.folder / "small.onnx", "--at", CUT, "-o", halves)).code == 0
    unsigned = refused(imported.run("models", "import", halves, "--name", "halves"), "SIGNATURE_MISSING")
    assert "split --out" in unsigned
    made = imported.run("models", "import", halves, "--name", "halves", "--unsigned", "--json")
    assert made.json["artifacts"].keys() == {"model.onnx", "head.onnx", "tail.onnx", "manifest.json"}
    shown = (imported.run("models", "show", "halves")).out
    rows = [line.split("│")[1].strip() for line in shown.splitlines() if line.startswith("│")]
    assert rows[:4] == ["manifest", "whole", "head", "tail"]
    assert imported.run("models", "import", halves, "--dry-run", "--name", "x", trusting=False).code == 0
    (halves / "tail.onnx").unlink()
    assert "tail.onnx" in refused(imported.run("models", "import", halves, "--name", "x"), "MODEL_INCOMPLETE")
    shutil.copy(halves / "head.onnx", halves / "tail.onnx")
    (halves / "tail.onnx").write_bytes(b"junk")
    broken = imported.run("models", "import", halves, "--name", "x")
    assert broken.code == 1
    assert "splitmesh: MODEL_CORRUPT: tail.onnx: " in broken.err


def test_held_versions_stay_and_others_go_for_good(imported: Desk) -> None:
    run = imported.run
    imported.import_("--description", "short-lived", name="gone")
    held = run("models", "hold", "gone:1", "--holder", "deployment/line-4")
    assert "is held by deployment/line-4 until it is released" in held.out
    assert "deployment/line-4" in (run("models", "show", "gone:1")).out
    assert "deployment/line-4" in refused(run("models", "delete", "gone:1"), "VERSION_IN_USE")
    refused(run("models", "delete", "gone"), "FIELD_INVALID")
    assert (run("models", "release", "gone:1", "--holder", "deployment/line-4", "--json")).json["holders"] == []
    assert (run("models", "delete", "gone:1", "--reason", "a test", "--by", "ann")).code == 0
    refused(run("models", "show", "gone:1"), "VERSION_NOT_FOUND")
    events = (run("models", "log", "gone", "--json")).json
    assert [one["kind"] for one in events][:1] == ["version.deleted"]
    assert events[0]["by"] == "ann"
    counted = (run("models", "gc", "--dry-run", "--json")).json
    assert counted["kept"] > 0
    assert "would remove" in (run("models", "gc", "--dry-run")).out


def test_what_cannot_be_imported_is_told_in_full_and_nothing_is_registered(imported: Desk, tmp_path: Path) -> None:
    model = onnx.load_model_from_string(small_model())
    for name in ("first", "second"):
        model.graph.node.append(helper.make_node("RandomNormalLike", ["x"], [name], name=name))
    model.graph.node.append(helper.make_node("Tangle", ["first"], ["third"], domain="vendor", name="knot"))
    model.opset_import.append(helper.make_opsetid("vendor", 1))
    (tmp_path / "odd.onnx").write_bytes(model.SerializeToString())
    page, data = tmp_path / "report.html", tmp_path / "report.json"
    ended = imported.run("models", "import", tmp_path / "odd.onnx", "--name", "odd", "--report", data)
    refused(ended, "MODEL_OPERATOR_UNSUPPORTED")
    assert "RandomNormalLike" in ended.out
    assert "vendor.Tangle" in ended.out
    found = json.loads(data.read_text())
    assert found["accepted"] is False
    assert found["refusal"]["reason"] == "MODEL_OPERATOR_UNSUPPORTED"
    assert [(one["name"], one["count"], one["where"]) for one in found["unsupported"]] == [
        ("RandomNormalLike", 2, ["first", "second"]),
        ("vendor.Tangle", 1, ["knot"]),
    ]
    dry = imported.run("models", "import", tmp_path / "odd.onnx", "--dry-run", "--report", page, "--json")
    assert (dry.code, json.loads(dry.out)["accepted"]) == (1, False)
    assert "vendor.Tangle" in page.read_text()
    refused(imported.run("models", "show", "odd"), "MODEL_NOT_FOUND")


def test_a_dry_run_tells_what_a_sound_model_is_and_registers_nothing(imported: Desk, tmp_path: Path) -> None:
    file = imported.folder / "small.onnx"
    dry = imported.run("models", "import", file, "--dry-run", "--report", tmp_path / "ok.json")
    assert dry.code == 0, dry
    assert "can be imported" in dry.out
    found = json.loads((tmp_path / "ok.json").read_text())
    assert found["operators"]["Conv"] == 2
    assert found["inputs"][0]["name"] == "x"
    names = {one["name"] for one in (imported.run("models", "list", "--json")).json}
    assert "small" not in names
    refused(imported.run("models", "import", file, "--dry-run", "--report", tmp_path / "x.txt"), "FIELD_INVALID")


def test_a_lineage_that_leads_nowhere_or_cannot_be_read_is_refused(imported: Desk) -> None:
    refused(imported.import_("--from-model", "nobody:3"), "MODEL_NOT_FOUND")
    refused(imported.import_("--metric", "accuracy=high"), "FIELD_INVALID")
    refused(imported.import_("--dataset", "boards:1"), "DATASET_NOT_FOUND")
