"""A manifest is read only when it is, byte for byte, what freezing writes: whatever lies is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest

from splitmesh.datasets import manifest
from splitmesh.datasets.freeze import freeze_items
from splitmesh.datasets.manifest import Dataset
from splitmesh.errors import MeshError, Reason
from tests.unit.dataset_items import box, boxed, item

PICTURES = freeze_items([item(n, provenance='said "picture":"' + "f" * 64 + '"') for n in range(40)], seed=1)
THINGS = freeze_items(
    [boxed(n, *(box(x=5 * k + 0.125) for k in range(n % 4)), box("nut", y=100)) for n in range(40)],
    task="detection",
    seed=1,
)


def canonical(values: Any) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def changed(dataset: Dataset, work: Callable[[dict[str, Any]], object]) -> bytes:
    values = json.loads(dataset.to_json())
    work(values)
    return canonical(values)


def first(values: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = values["entries"][0]
    return entry


@pytest.mark.parametrize("dataset", [PICTURES, THINGS], ids=["classification", "detection"])
def test_a_manifest_is_read_back_the_same_and_its_digest_is_its_id(dataset: Dataset) -> None:
    data = dataset.to_json()
    assert data == canonical(json.loads(data))
    assert dataset.id == hashlib.sha256(data).hexdigest()
    again = Dataset.from_json(data, sha256=dataset.id)
    assert again == dataset
    assert again.to_json() == data


def test_nothing_is_not_frozen_but_an_empty_manifest_can_be_read() -> None:
    with pytest.raises(MeshError) as error:
        freeze_items([], seed=1)
    assert error.value.reason is Reason.CALIBRATION_INSUFFICIENT
    values = changed(PICTURES, lambda v: v.update(entries=[], classes=[], statistics=empty()))
    assert Dataset.from_json(values).entries == ()


def empty() -> dict[str, Any]:
    split = {"pictures": 0, "picture_bytes": 0, "groups": 0, "labels": {}, "cameras": {}}
    return {
        "splits": dict.fromkeys(("train", "val", "test"), split),
        "unlabelled": 0,
        "without_picture": 0,
        "repeated": 0,
        "given": 0,
    }


LIES: dict[str, tuple[Dataset, Callable[[dict[str, Any]], object]]] = {
    "labels counted wrongly": (PICTURES, lambda v: v["statistics"]["splits"]["train"]["labels"].update(bad=99)),
    "a picture left out": (PICTURES, lambda v: v["entries"].pop()),
    "a picture twice": (PICTURES, lambda v: v["entries"].append(v["entries"][-1])),
    "a label that is no class": (PICTURES, lambda v: first(v).update(label="ugly")),
    "a class twice": (PICTURES, lambda v: v["classes"].append("bad")),
    "a label missing": (PICTURES, lambda v: first(v).update(label="")),
    "boxes in a classification": (
        PICTURES,
        lambda v: first(v).update(boxes=first(json.loads(THINGS.to_json()))["boxes"]),
    ),
    "a label in a detection": (THINGS, lambda v: first(v).update(label="nut")),
    "a box that sticks out": (THINGS, lambda v: first(v)["boxes"][0].update(x=639.5)),
    "a box of no width": (THINGS, lambda v: first(v)["boxes"][0].update(width=0.0)),
    "a box at infinity": (THINGS, lambda v: first(v)["boxes"][0].update(x=1e400)),
    "a path for a digest": (PICTURES, lambda v: first(v).update(picture="../../etc/passwd")),
    "a digest with a line break": (PICTURES, lambda v: first(v).update(picture=first(v)["picture"] + "\n")),
    "a time in another zone": (PICTURES, lambda v: first(v).update(captured_at="2025-03-04T11:00:00.000000+01:00")),
    "a time that is none": (PICTURES, lambda v: first(v).update(captured_at="yesterday")),
    "a name that clears the screen": (PICTURES, lambda v: first(v).update(site="\x1b[2J")),
    "an unknown field": (PICTURES, lambda v: first(v).update(colour="red")),
    "an older form": (PICTURES, lambda v: v.update(schema_version=1)),
    "another task": (PICTURES, lambda v: v.update(task="segmentation")),
    "a number for a text": (PICTURES, lambda v: first(v).update(site=7)),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_manifest_that_lies_is_refused(lie: str) -> None:
    dataset, work = LIES[lie]
    with pytest.raises(MeshError) as error:
        Dataset.from_json(changed(dataset, work))
    assert error.value.reason is Reason.FIELD_INVALID
    assert error.value.fields[0][0] == "manifest"


@pytest.mark.parametrize(
    "data",
    [
        json.dumps(json.loads(PICTURES.to_json())).encode(),
        PICTURES.to_json()[:-1],
        PICTURES.to_json().replace(b'"seed":1', b'"seed":1,"seed":1'),
        PICTURES.to_json().replace(b'"lyon"', b'"\\u006cyon"'),
    ],
    ids=["spaces", "no line break", "a field twice", "escapes"],
)
def test_a_manifest_in_other_bytes_is_refused_because_its_digest_would_name_it_twice(data: bytes) -> None:
    with pytest.raises(MeshError, match="other bytes"):
        Dataset.from_json(data)


@pytest.mark.parametrize("data", [b"", b"\xff", b"[]", b"{}", b"[" * 10_000, PICTURES.to_json()[:-100]])
def test_bytes_that_are_no_manifest_are_refused(data: bytes) -> None:
    with pytest.raises(MeshError) as error:
        Dataset.from_json(data)
    assert error.value.reason is Reason.FIELD_INVALID


def test_an_older_form_is_told_from_damage() -> None:
    with pytest.raises(MeshError, match="must be frozen again"):
        Dataset.from_json(changed(PICTURES, lambda v: v.update(schema_version=1)))


def test_a_manifest_of_another_digest_or_a_huge_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MeshError) as error:
        Dataset.from_json(PICTURES.to_json(), sha256=THINGS.id)
    assert error.value.reason is Reason.DIGEST_MISMATCH
    monkeypatch.setattr(manifest, "MAX_MANIFEST_BYTES", 100)
    with pytest.raises(MeshError, match="at most 100 are read"):
        Dataset.from_json(PICTURES.to_json())
