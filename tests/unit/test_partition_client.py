"""What the partitioner answers, as its client and `splitmesh plan` give it on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import pytest
from typer.testing import CliRunner

from splitmesh.api.partition.v1 import partition_pb2
from splitmesh.cli import planning
from splitmesh.cli.app import app
from splitmesh.client.partition import PartitionClient, PlanInfo
from tests.unit.test_plan_record import over_a_link, recorded

RECORD = recorded(over_a_link())
OPTION = partition_pb2.PlanOption(kind="CLOUD_ONLY", latency_ms=3, feasible=True)


async def planned(monkeypatch: pytest.MonkeyPatch, plan_json: str) -> PlanInfo:
    answer = partition_pb2.PlanPartitionResponse(options=[OPTION], why="it is near", plan_json=plan_json)
    stub: Any = AsyncMock()
    stub.PlanPartition.return_value = answer
    client = PartitionClient(AsyncMock())
    monkeypatch.setattr(client, "_stub", AsyncMock(return_value=stub))
    return await client.plan("joints", 1, uplink_mbps=10, rtt_ms=5)


async def test_a_plan_comes_with_its_record(monkeypatch: pytest.MonkeyPatch) -> None:
    found = await planned(monkeypatch, RECORD.to_json())
    assert (found.record, found.no_record) == (RECORD, "")


@pytest.mark.parametrize(
    ("plan_json", "problem"),
    [("", "too old"), (json.dumps({**json.loads(RECORD.to_json()), "schema_version": 2}), "may be newer")],
)
async def test_a_plan_whose_record_cannot_be_read_still_ranks_and_says_why_it_cannot_be_kept(
    monkeypatch: pytest.MonkeyPatch, plan_json: str, problem: str
) -> None:
    found = await planned(monkeypatch, plan_json)
    assert [row.kind for row in found.options] == ["CLOUD_ONLY"]
    assert (found.record, problem in found.no_record) == (None, True)


def test_a_plan_that_cannot_be_kept_is_shown_and_only_its_file_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    client = AsyncMock()
    client.plan.return_value = PlanInfo((), "it is near", None, None, "it is of tomorrow")
    version = AsyncMock(return_value=MagicMock(model="joints", version=1))
    for name, fake in {
        "PartitionClient": lambda _: client,
        "find_version": version,
        "registry_of": MagicMock(),
    }.items():
        monkeypatch.setattr(planning, name, fake)
    asked = ["plan", "joints:1", "--uplink-mbps", "10", "--rtt-ms", "5"]
    shown = CliRunner().invoke(app, asked)
    assert (shown.exit_code, "it is near" in shown.stdout) == (0, True)
    assert "cannot be kept: it is of tomorrow" in shown.stderr
    refused = CliRunner().invoke(app, [*asked, "--out", str(tmp_path / "plan.json")])
    assert (refused.exit_code, "cannot be kept: it is of tomorrow" in refused.stderr) == (1, True)
    assert not (tmp_path / "plan.json").exists()
