"""`splitmesh datasets` between two sites and a registry: versions, rules, thumbnails, and a push that is killed."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from splitmesh.client import dataset_publish
from splitmesh.client.dataset_copies import Copies, publish_copies
from splitmesh.datasets.folder import PictureFolder
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.config import ENV_PREFIX
from tests.integration.command_line import refused
from tests.integration.dataset_sites import COUNT, Sites, two_sites
from tests.unit.dataset_files import lay, png

WAIT_S = 60.0


@pytest.fixture
async def sites(tmp_path: Path) -> AsyncIterator[Sites]:
    async with two_sites(tmp_path) as made:
        yield made


async def test_an_import_becomes_a_version_and_no_picture_leaves(sites: Sites) -> None:
    version = await sites.take()
    assert (version["dataset"], version["version"], version["pictures"]) == ("boards", 1, COUNT)
    assert (version["pictures_here"], version["created_by"]) == (None, "ana")
    ended = await sites.run("lyon", "push", "boards")
    assert "0 sent" in ended.out
    assert f"stayed: {COUNT}, no rule lets it go (there is no --sharing" in ended.out
    assert [one["name"] for one in (await sites.run("", "list", "--json")).json] == ["boards"]
    assert "boards" in (await sites.run("", "list")).out
    shown = await sites.run("lyon", "show", "boards")
    assert f"of {COUNT} pictures {COUNT} are at this site, 0 in the registry" in shown.out


async def test_rules_let_some_go_whole_and_some_as_thumbnails_and_another_site_gets_them(sites: Sites) -> None:
    await sites.take()
    rules = ("--sharing", sites.folder / "rules.yaml")
    pushed = (await sites.run("lyon", "push", "boards", *rules, "--by", "ana", "--json")).json
    assert (pushed["sent"], pushed["thumbnails"], pushed["stayed"]) == (COUNT, COUNT // 2, {})
    assert pushed["thumbnails_version"]["dataset"] == "boards-thumbnails"
    again = await sites.run("lyon", "push", "boards:1", SHARING=str(sites.folder / "rules.yaml"))
    assert f"0 sent (0 bytes), {COUNT} were there already" in again.out
    assert "boards-thumbnails:1" in again.out
    pulled = (await sites.run("paris", "pull", "boards", "--json")).json
    assert (pulled["fetched"], pulled["elsewhere"], pulled["refused"]) == (COUNT // 2, COUNT // 2, 0)
    small = await sites.run("paris", "pull", "boards-thumbnails")
    assert f"{COUNT // 2} fetched" in small.out
    assert f"{COUNT // 2} were here already" in small.out
    paris = PictureFolder(sites.folder / "paris")
    kept = [paris.manifest(digest) for digest in paris.manifests()]
    (thumbnails,) = (one for one in kept if any(entry.width == 16 for entry in one.entries))
    assert {(entry.label, entry.width) for entry in thumbnails.entries} == {("bad", 40), ("good", 16)}
    assert paris.missing([entry.picture for entry in thumbnails.entries]) == []
    begun, done, *_ = sites.log("lyon")
    assert (begun["what"], begun["dataset"], begun["by"]) == ("pushing", "boards:1", "ana")
    assert (done["what"], done["sent"], done["thumbnails"]) == ("pushed", COUNT, COUNT // 2)
    assert [line["what"] for line in sites.log("paris")] == ["pulling", "pulled", "pulling", "pulled"]
    events = await sites.world.client.events("boards-thumbnails")
    assert [event.kind for event in events] == ["dataset.created"]


async def test_thumbnails_that_stay_by_now_are_not_in_the_next_version_or_told_where_there_can_be_none(
    sites: Sites,
) -> None:
    await sites.take()
    await sites.run("lyon", "push", "boards", "--sharing", sites.folder / "rules.yaml")
    bad = "pictures: [{labels: [bad], share: whole}]"
    lay(sites.folder, {"whole.yaml": f"{{manifests: [boards], {bad}}}", "closed.yaml": bad})
    closed = ("--sharing", sites.folder / "closed.yaml")
    for options, count in (((), COUNT), (closed, COUNT // 2)):
        told = (await sites.run("lyon", "push", "boards", *options)).out
        assert f"boards-thumbnails:1 has {count} pictures that this site does not let go" in told
        assert "splitmesh datasets delete boards-thumbnails:1" in told
    rules = ("--sharing", sites.folder / "whole.yaml")
    assert "not in boards-thumbnails:2" in (await sites.run("lyon", "push", "boards", *rules)).out
    assert (await sites.run("", "list", "boards-thumbnails", "--json")).json[0]["pictures"] == COUNT // 2
    again = (await sites.run("lyon", "push", "boards", *rules, "--json")).json
    assert (again["thumbnails_version"], again["thumbnails_still_there"]) == (None, 0)


async def test_a_manifest_of_the_site_becomes_a_version_where_the_rules_let_it(sites: Sites) -> None:
    arguments = (sites.folder / "in", "--form", "csv", "--name", "boards", "--no-push", "--json")
    reference = f"sha256:{(await sites.run('lyon', 'import', *arguments)).json['manifest']}"
    refused(await sites.run("lyon", "push", reference, "--name", "boards"), "CONTENT_NOT_ALLOWED")
    rules = ("--sharing", sites.folder / "rules.yaml")
    refused(await sites.run("lyon", "push", reference, "--name", "joints", *rules), "CONTENT_NOT_ALLOWED")
    refused(await sites.run("lyon", "push", reference, *rules), "FIELD_INVALID")
    refused(await sites.run("lyon", "pull", reference), "FIELD_INVALID")
    assert (await sites.run("", "list", "--json")).json == []
    pushed = (await sites.run("lyon", "push", reference, "--name", "boards", *rules, "--json")).json
    assert pushed["dataset"] == "boards:1"
    refused(await sites.run("lyon", "push", "boards", "--name", "joints", *rules), "FIELD_INVALID")


async def test_versions_follow_from_each_other_and_are_deleted_by_number(sites: Sites) -> None:
    await sites.take()
    made = (await sites.run("lyon", "split", "boards:1", "--split", "0.5,0.25,0.25", "--json")).json["version"]
    assert (made["version"], made["parent"], made["description"]) == (2, 1, "divided 0.5,0.25,0.25 with seed 0")
    listed = (await sites.run("", "list", "boards", "--json")).json
    assert [one["version"] for one in listed] == [2, 1]
    assert "divided" in (await sites.run("", "list", "boards")).out
    # Another site has neither manifest nor pictures, and can compare all the same.
    found = (await sites.run("paris", "diff", "boards:1", "boards:2", "--json")).json["difference"]
    assert (found["added"], found["removed"], found["relabelled"]) == ([], [], [])
    refused(await sites.run("lyon", "delete", "boards"), "FIELD_INVALID")
    await sites.run("lyon", "delete", "boards:2", "--reason", "try")
    refused(await sites.run("lyon", "show", "boards:2"), "VERSION_NOT_FOUND")
    refused(await sites.run("lyon", "show", "joints"), "DATASET_NOT_FOUND")
    assert len(PictureFolder(sites.folder / "lyon").manifests()) == 1


async def test_thumbnails_that_were_collected_before_anything_named_them_are_sent_again(
    sites: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def collected(client: Any, info: Any, dataset: Any, left: Any, *rest: Any, **options: Any) -> Copies:
        if not calls:
            for copy in filter(None, left.values()):
                (path,) = sites.folder.rglob(f"blobs/*/{copy.sha256}")
                path.unlink()
        calls.append(sum(copy is not None for copy in left.values()))
        return await publish_copies(client, info, dataset, left, *rest, **options)

    calls: list[int] = []
    await sites.take()
    monkeypatch.setattr(dataset_publish, "publish_copies", collected)
    pushed = (await sites.run("lyon", "push", "boards", "--sharing", sites.folder / "rules.yaml", "--json")).json
    assert (calls, pushed["thumbnails_version"]["version"]) == ([COUNT // 2, COUNT // 2], 1)
    assert (await sites.run("paris", "pull", "boards-thumbnails", "--json")).json["elsewhere"] == 0


async def test_rules_that_cannot_be_read_or_close_the_site_stop_everything(sites: Sites) -> None:
    await sites.take()
    for command in ("push", "pull"):
        refused(await sites.run("lyon", command, "boards", "--sharing", sites.folder / "none.yaml"), "FIELD_INVALID")
    lay(sites.folder, {"closed.yaml": "accept: []"})
    refused(await sites.run("lyon", "pull", "boards", "--sharing", sites.folder / "closed.yaml"), "CONTENT_NOT_ALLOWED")
    assert not (sites.folder / "lyon" / "sync.jsonl").exists()


async def test_thumbnails_need_a_manifest_that_may_leave_before_any_of_them_does(sites: Sites) -> None:
    await sites.take()
    lay(sites.folder, {"small.yaml": "pictures: [{share: thumbnail, long_side: 16}]"})
    refused(await sites.run("lyon", "push", "boards", "--sharing", sites.folder / "small.yaml"), "CONTENT_NOT_ALLOWED")
    assert not (sites.folder / "lyon" / "sync.jsonl").exists()
    lay(
        sites.folder,
        {"other.yaml": "pictures: [{datasets: [joints], share: thumbnail, long_side: 16}, {share: whole}]"},
    )
    pushed = await sites.run("lyon", "push", "boards", "--sharing", sites.folder / "other.yaml", "--json")
    assert pushed.json["sent"] == COUNT


async def test_a_push_that_fails_is_in_the_sites_log(sites: Sites, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_: object, **__: object) -> None:
        raise MeshError(Reason.STORAGE_FULL, "no room")

    await sites.take()
    monkeypatch.setattr(dataset_publish, "push_pictures", full)
    refused(await sites.run("lyon", "push", "boards"), "STORAGE_FULL")
    assert [(line["what"], line.get("reason")) for line in sites.log("lyon")] == [
        ("pushing", None),
        ("push failed", "STORAGE_FULL"),
    ]


async def test_a_push_that_is_killed_goes_on_where_it_was(sites: Sites) -> None:
    rows = [f"{n}.png,bad" for n in range(5)]
    large = {f"{n}.png": png(n, 1200, 1000) for n in range(5)}
    lay(sites.folder / "large", {**large, "labels.csv": "\n".join(["image,label", *rows])})
    await sites.run("lyon", "import", sites.folder / "large", "--form", "csv", "--name", "large", "--split", "1,0,0")
    lay(sites.folder, {"whole.yaml": "pictures: [{share: whole}]"})
    lyon = PictureFolder(sites.folder / "lyon")
    (manifest,) = map(lyon.manifest, lyon.manifests())
    digests = [entry.picture for entry in manifest.entries]
    arguments = (
        "datasets",
        "push",
        "large",
        "--folder",
        sites.folder / "lyon",
        "--sharing",
        sites.folder / "whole.yaml",
    )
    own = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from splitmesh.cli import main; main()"),
        *map(str, (*arguments, "--limit-mbit", "8")),
        env={**own, f"{ENV_PREFIX}STATIC_ADDRESSES": f"registry={sites.world.address}"},
    )
    async with asyncio.timeout(WAIT_S):
        while len(await sites.world.client.missing(digests)) == len(digests):
            assert process.returncode is None
            await asyncio.sleep(0.01)
    process.kill()
    await process.wait()
    missing = len(await sites.world.client.missing(digests))
    assert 0 < missing < len(digests)
    pushed = (await sites.run("lyon", "push", "large", "--sharing", sites.folder / "whole.yaml", "--json")).json
    assert (pushed["sent"], pushed["there"]) == (missing, len(digests) - missing)
    assert await sites.world.client.missing(digests) == []
    assert [line["what"] for line in sites.log("lyon")] == ["pushing", "pushing", "pushed"]
