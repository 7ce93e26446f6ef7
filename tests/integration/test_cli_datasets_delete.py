"""What a deletion and damage at a site may cost: never a picture that a version names."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from splitmesh.client.datasets import DatasetClient
from tests.integration.command_line import refused
from tests.integration.dataset_sites import COUNT, Sites, two_sites
from tests.unit.dataset_files import lay


@pytest.fixture
async def sites(tmp_path: Path) -> AsyncIterator[Sites]:
    async with two_sites(tmp_path) as made:
        yield made


def age_all(folder: Path) -> None:
    for path in folder.rglob("?" * 64):
        os.utime(path, (1000, 1000))


async def test_a_manifest_that_another_version_names_stays_at_the_site_with_its_pictures(sites: Sites) -> None:
    await sites.take()
    again = await sites.run("lyon", "import", sites.folder / "in", "--form", "csv", "--name", "cells", "--json")
    manifest = again.json["version"]["manifest"]["sha256"]
    ended = await sites.run("lyon", "delete", "boards:1", "--json")
    assert ended.json == {"dataset": "boards:1", "deleted": True, "manifest_dropped": False}
    assert sites.pictures("lyon").manifests() == [manifest]
    age_all(sites.folder / "lyon")
    assert (await sites.run("lyon", "gc", "--json")).json["pictures"] == 0
    assert f"of {COUNT} pictures {COUNT} are at this site" in (await sites.run("lyon", "show", "cells")).out
    ended = await sites.run("lyon", "delete", "cells:1")
    assert "go with the next collection" in ended.out
    assert sites.pictures("lyon").manifests() == []
    assert (await sites.run("lyon", "gc", "--min-age-hours", "0", "--json")).json["pictures"] == COUNT


async def test_a_manifest_that_is_kept_again_while_its_version_is_deleted_stays(
    sites: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = await sites.take()
    manifest = version["manifest"]["sha256"]
    age_all(sites.folder / "lyon")
    real = DatasetClient.delete

    async def delete(self: DatasetClient, *arguments: object, **options: object) -> bool:
        unused = await real(self, *arguments, **options)  # type: ignore[arg-type]
        here = sites.pictures("lyon")
        here.keep_manifest(here.manifest(manifest))
        return unused

    monkeypatch.setattr(DatasetClient, "delete", delete)
    assert "no manifest was dropped here" in (await sites.run("lyon", "delete", "boards:1")).out
    assert sites.pictures("lyon").manifests() == [manifest]


async def test_a_deletion_that_is_refused_or_of_another_site_drops_nothing(sites: Sites) -> None:
    version = await sites.take()
    refused(await sites.run("lyon", "delete", "boards:2"), "VERSION_NOT_FOUND")
    assert "no manifest was dropped here" in (await sites.run("paris", "delete", "boards:1")).out
    assert sites.pictures("lyon").manifests() == [version["manifest"]["sha256"]]


async def test_damage_at_a_site_is_mended_from_the_registry(sites: Sites) -> None:
    version = await sites.take()
    lay(sites.folder, {"whole.yaml": "pictures: [{share: whole}]"})
    await sites.run("lyon", "push", "boards", "--sharing", sites.folder / "whole.yaml")
    manifest, here = version["manifest"]["sha256"], sites.pictures("lyon")
    picture = here.manifest(manifest).entries[0].picture
    paths = (sites.file_of("lyon", "manifests", manifest), sites.file_of("lyon", "pictures", picture))
    for path in paths:
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert (await sites.run("lyon", "verify")).code == 1
    shown = await sites.run("lyon", "show", "boards")
    assert shown.code == 0
    assert "was damaged at this site; it was fetched again" in shown.err
    assert here.manifest(manifest).id == manifest
    assert (await sites.run("lyon", "verify", "boards")).code == 1
    pulled = (await sites.run("lyon", "pull", "boards", "--json")).json
    assert (pulled["fetched"], pulled["here"], pulled["damaged"]) == (1, COUNT - 1, 0)
    assert (await sites.run("lyon", "verify")).code == 0


async def test_damage_that_the_registry_cannot_mend_is_said(sites: Sites) -> None:
    version = await sites.take()
    picture = sites.pictures("lyon").manifest(version["manifest"]["sha256"]).entries[0].picture
    sites.file_of("lyon", "pictures", picture).write_bytes(b"x")
    ended = await sites.run("lyon", "pull", "boards")
    assert ended.code == 1
    assert "1 are damaged here, and the registry does not have them" in ended.out


async def test_a_name_that_leaves_no_room_for_its_thumbnails_is_refused_before_anything_leaves(sites: Sites) -> None:
    name = "x" * 60
    await sites.run("lyon", "import", sites.folder / "in", "--form", "csv", "--name", name)
    lay(sites.folder, {"small.yaml": "manifests: ['*']\npictures: [{share: thumbnail, long_side: 16}]"})
    refused(await sites.run("lyon", "push", name, "--sharing", sites.folder / "small.yaml"), "FIELD_INVALID")
    assert not (sites.folder / "lyon" / "sync.jsonl").exists()
