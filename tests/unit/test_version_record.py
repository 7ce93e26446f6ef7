"""The record beside a version's files: the same again when it is read, and refused when it is anything else."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from splitmesh.errors import MeshError, Reason
from splitmesh.export.record import MAX_RECORD_BYTES, FileDigest, VersionRecord
from splitmesh.model.lineage import DatasetUse, Lineage, VersionName

LINEAGE = Lineage(
    (VersionName("backbone", 4),), (DatasetUse("boards", 2, "ab" * 32),), "t", "c", "", (7,), {"acc": 0.9}
)
RECORD = VersionRecord(
    *(
        "solder",
        3,
        2,
        {"model.onnx": FileDigest("0" * 64, 5)},
        "import by a@b",
        datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC),
    ),
    *("text", ("canary", "production"), LINEAGE, (b"{}", b"\x00\xff")),
)


def test_a_record_comes_back_as_it_went_with_the_same_lineage_digest() -> None:
    again = VersionRecord.from_json(RECORD.to_json())
    assert again == RECORD
    assert again.lineage.sha256 == LINEAGE.sha256
    assert again.to_json() == RECORD.to_json()


@pytest.mark.parametrize(
    ("field", "content"),
    [
        ("model", "../up"),
        ("artifacts", {"../x": {"sha256": "0" * 64, "size_bytes": 1}}),
        ("artifacts", {"x": {"sha256": "0" * 63, "size_bytes": 1}}),
        ("artifacts", {}),
        ("signatures", ["not base64!"]),
        ("schema_version", 2),
        ("more", 1),
    ],
)
def test_what_is_no_record_is_refused(field: str, content: object) -> None:
    changed = {**json.loads(RECORD.to_json()), field: content}
    with pytest.raises(MeshError) as caught:
        VersionRecord.from_json(json.dumps(changed).encode())
    assert caught.value.reason is Reason.MODEL_CORRUPT


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b" " * (MAX_RECORD_BYTES + 1)])
def test_bytes_that_are_no_record_are_refused(content: bytes) -> None:
    with pytest.raises(MeshError) as caught:
        VersionRecord.from_json(content)
    assert caught.value.reason is Reason.MODEL_CORRUPT
