"""Plans as files on the command line, with no service running: what is written, read back, and refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from splitmesh.cli.plan_files import plan_lines, read_plan
from splitmesh.model.plan_record import MAX_PLAN_BYTES, PlanRecord
from tests.integration.command_line import model_files, refused, splitmesh_here
from tests.integration.small_model import CUT

LINK = ("--uplink-mbps", 1, "--rtt-ms", 10, "--budget-s", 0.5, "--edge-slowdown", 3, "--cloud-speedup", 4)


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, its plan, and the plan as it was printed."""
    folder = tmp_path_factory.mktemp("planned")
    model_files(folder)
    ended = splitmesh_here(
        "plan", folder / "small.onnx", *LINK, "--picture-bytes", 99, "--out", folder / "plan.json", "--json"
    )
    (folder / "printed.json").write_text(json.dumps(ended.json))
    return folder


def test_a_plan_of_a_file_is_kept_with_the_files_digest_and_can_be_read_as_written_and_as_printed(
    planned: Path,
) -> None:
    record = read_plan(planned / "plan.json")
    assert record.model == "small.onnx"
    assert record.whole_sha256 == hashlib.sha256((planned / "small.onnx").read_bytes()).hexdigest()
    assert [(tier.name, tier.slowdown) for tier in record.tiers] == [("edge", 3.0), ("cloud", 0.25)]
    assert [(link.uplink_mbps, link.rtt_ms) for link in record.plan.links] == [(1.0, 10.0)]
    assert read_plan(planned / "printed.json") == record


def test_a_version_shows_its_plan_in_words(planned: Path) -> None:
    record, _ = read_plan(planned / "plan.json").follow([[CUT]])
    text = "\n".join(plan_lines(record, record.whole_sha256))
    assert record.choice is not None
    for said in ("plan of small.onnx for latency", "1 Mbit/s, 10 ms", f"chosen: {record.choice.name}", record.plan.why):
        assert said in text
    assert "another whole model" not in text
    assert "made for another whole model" in plan_lines(record, "0" * 64)[-1]
    assert plan_lines(None, "") == []
    assert plan_lines("no plan", "") == ["plan.json cannot be read: no plan"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is no plan"),
        (b"{}", "is no plan"),
        (b'{"record": {}}', "is no plan"),
        (b"[" * 100_000, "is no plan"),
        (b" " * (MAX_PLAN_BYTES + 1), "more than"),
    ],
)
def test_a_file_that_is_no_plan_is_refused_before_anybody_is_asked(
    tmp_path: Path, content: bytes, problem: str
) -> None:
    (tmp_path / "plan.json").write_bytes(content)
    assert problem in refused(splitmesh_here("split", "joints:1", "--plan", tmp_path / "plan.json"), "FIELD_INVALID")


def test_a_plan_that_is_not_there_or_cannot_be_written_is_said(planned: Path, tmp_path: Path) -> None:
    assert "cannot be read" in refused(splitmesh_here("split", "joints:1", "--plan", tmp_path / "no"), "FIELD_INVALID")
    out = tmp_path / "no" / "plan.json"
    ended = splitmesh_here("plan", planned / "small.onnx", *LINK, "--out", out)
    assert "cannot be written" in refused(ended, "FIELD_INVALID")


@pytest.mark.parametrize(
    "options", [(), ("--then", "mixed"), ("--then", "mixed", "--plan", "plan.json")], ids=["nothing", "then", "plan"]
)
def test_a_split_needs_to_be_told_where(options: tuple[str, ...]) -> None:
    ended = splitmesh_here("split", "joints:1", *options)
    assert (ended.code, "--at is needed" in ended.err) == (2, True)


def test_a_plan_is_for_versions_and_not_for_files(planned: Path, tmp_path: Path) -> None:
    options = ("--plan", planned / "plan.json", "-o", tmp_path / "out")
    ended = splitmesh_here("split", planned / "small.onnx", *options)
    assert (ended.code, "--plan is for versions" in ended.err) == (2, True)
    assert not (tmp_path / "out").exists()


def test_the_output_for_programs_keeps_its_options_and_gains_the_record(planned: Path) -> None:
    printed = json.loads((planned / "printed.json").read_text())
    assert printed.keys() == {"options", "why", "certificate", "record"}
    assert len(printed["options"]) == PlanRecord.from_json(json.dumps(printed["record"])).options_ranked
