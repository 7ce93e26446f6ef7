"""``splitmesh route site`` and ``splitmesh route shares`` against a router."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest
import typer

from splitmesh.cli import route_shares
from splitmesh.client.shares import ShareClient
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.kernel.channels import Channels
from tests.integration.command_line import Ended, refused, splitmesh_here
from tests.integration.test_shares import WAIT_S, Head, router


class Shell:
    """Commands against one router, each in a thread: they bring a loop of their own."""

    def __init__(self, channels: Channels, address: str) -> None:
        self.channels, self.address = channels, address

    async def __call__(self, *arguments: object) -> Ended:
        return await asyncio.to_thread(splitmesh_here, "route", *arguments, STATIC_ADDRESSES=f"router={self.address}")


@pytest.fixture
async def shell(tmp_path: Path) -> AsyncIterator[Shell]:
    async with router(tmp_path) as channels:
        (router_there,) = await channels.discovery.resolve("router")
        yield Shell(channels, router_there.address)


@asynccontextmanager
async def asking(channels: Channels) -> AsyncIterator[None]:
    head = Head(channels, "mec-1")
    head.ask(200)
    await head.until(99_000, 100_000)
    yield
    await head.leave()


async def test_a_budget_is_stated_in_parts_and_shown(shell: Shell) -> None:
    first = await shell("site", "line-4", "--uplink-mbps", 0.8, "--app", "solder=weight:5,min:0.1")
    assert first.code == 0, first
    second = await shell("site", "line-4", "--cloud-ms-per-s", 500, "--app", "faces=weight:0.5", "--json")
    shown = await shell("site", "line-4", "--json")
    assert second.json == shown.json == {
        "site": "line-4",
        "bytes_per_s": 100_000.0,
        "cloud_ms_per_s": 500.0,
        "applications": [
            {"application": "faces", "weight": 0.5, "min_share": 0.0},
            {"application": "solder", "weight": 5.0, "min_share": 0.1},
        ],
    }  # fmt: skip
    text = (await shell("site", "line-4")).out
    assert "line-4: 0.8 Mbit/s of uplink, 500 ms/s of the tails' time" in text
    assert "10.0%" in text
    reset = await shell("site", "line-4", "--reset", "--uplink-mbps", 1, "--json")
    assert reset.json["applications"] == []
    assert reset.json["cloud_ms_per_s"] == 0.0


async def test_a_site_of_which_nothing_is_known_is_shown_without_limits(shell: Shell) -> None:
    assert (await shell("site", "elsewhere")).out == "elsewhere: no limit of the uplink, none of the tails' time\n"
    assert (await shell("shares", "elsewhere")).out == (
        "no budget is stated for elsewhere, and no head shares an uplink there\n"
    )
    assert "any site" in (await shell("shares")).out


async def test_shares_are_shown_by_node_and_application(shell: Shell) -> None:
    await shell("site", "line-4", "--uplink-mbps", 0.8)
    async with asking(shell.channels):
        (site,) = (await shell("shares", "--json")).json
        text = (await shell("shares", "line-4")).out
    (share,) = site["shares"]
    assert (share["node"], share["application"], share["asked_per_s"]) == ("mec-1", "solder", 200.0)
    assert round(share["allowed_per_s"]) == 100
    for part in ("mec-1", "solder", "0.8 Mbit/s of uplink", "a kilobyte costs", "800", "0.500"):
        assert part in text


async def test_a_watch_goes_on_until_it_is_interrupted(shell: Shell) -> None:
    await shell("site", "line-4", "--uplink-mbps", 0.8)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from splitmesh.cli import main; main()", "route", "shares", "--watch", "--json"),
        env={"SPLITMESH_STATIC_ADDRESSES": f"router={shell.address}", "PYTHONWARNINGS": "error"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(WAIT_S):
        lines = [json.loads(await process.stdout.readline()) for _ in range(2)]
        process.send_signal(2)
        out, err = await process.communicate()
    assert [line[0]["site"] for line in lines] == ["line-4"] * 2
    assert (process.returncode, err.decode()) == (0, ""), out


async def test_a_watch_goes_on_while_the_router_is_away_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    away = MeshError(Reason.SERVICE_UNAVAILABLE, "nobody there")
    answers: list[Any] = [[], away, [], field_error("site", "is no name")]
    monkeypatch.setattr(ShareClient, "get_shares", AsyncMock(side_effect=answers))
    monkeypatch.setattr(route_shares, "EVERY_S", 0.0)
    with pytest.raises(typer.Exit):
        await asyncio.to_thread(route_shares.shares, "line-4", watch=True, json=True)
    said = capsys.readouterr()
    assert said.out == "[]\n[]\n"
    assert "the router does not answer, trying again: SERVICE_UNAVAILABLE: nobody there" in said.err
    assert "FIELD_INVALID" in said.err


async def test_a_watch_of_a_router_that_never_answered_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    away = MeshError(Reason.SERVICE_UNAVAILABLE, "nobody there")
    monkeypatch.setattr(ShareClient, "get_shares", AsyncMock(side_effect=away))
    with pytest.raises(typer.Exit):
        await asyncio.to_thread(route_shares.shares, "line-4", watch=True, json=True)


@pytest.mark.parametrize("place", ["=weight:5", "solder=heavy:1", "solder=weight:much", "solder=weight:0"])
async def test_an_application_that_cannot_be_read_is_refused(shell: Shell, place: str) -> None:
    assert "is not an application's place" in refused(await shell("site", "line-4", "--app", place), "FIELD_INVALID")


async def test_a_budget_that_is_none_is_refused_by_the_router(shell: Shell) -> None:
    assert "bytes_per_s" in refused(await shell("site", "line-4", "--uplink-mbps", -1), "FIELD_INVALID")
