"""What damage, collections and imports do to the pictures that a site keeps."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from splitmesh.cli import datasets_import
from splitmesh.datasets.folder import FolderLimits, PictureFolder, Usage
from splitmesh.errors import MeshError, Reason
from tests.integration.command_line import refused
from tests.integration.dataset_sites import Site, table


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "site")


def test_damaged_pictures_are_found_and_unused_ones_go(site: Site, tmp_path: Path) -> None:
    reference = site.take(table(tmp_path / "in"), "csv")
    sound = {"datasets": [reference[:23]], "whole": 12, "missing": 0, "damaged": [], "damaged_manifests": {}}
    assert site.run("verify", "--json").json == sound
    digest = site.dataset(reference).entries[0].picture
    (path,) = site.folder.rglob(digest)
    path.write_bytes(b"x")
    ended = site.run("verify", reference)
    assert ended.code == 1
    assert f"damaged: {digest}" in ended.out
    assert site.run("gc", "--min-age-hours", "0", "--json").json["pictures"] == 0
    site.run("delete", reference)
    assert PictureFolder(site.folder).manifests() == []
    assert site.run("gc", "--json").json["pictures"] == 0
    assert site.run("gc", "--min-age-hours", "0", "--json").json["pictures"] == 12


def test_a_damaged_manifest_is_told_and_dropped_unread_and_costs_no_picture_before(site: Site, tmp_path: Path) -> None:
    reference = site.take(table(tmp_path / "in"), "csv")
    other = site.take(table(tmp_path / "other", 6), "csv", "--split", "1,0,0")
    (path,) = (site.folder / "manifests").rglob(reference.removeprefix("sha256:"))
    path.write_bytes(path.read_bytes()[:-5])
    rows = {row["manifest"]: row for row in site.run("list", "--here", "--json").json}
    assert "damaged" in rows[reference]["problem"]
    assert rows[other]["pictures_here"] == 6
    assert "cannot be read" in site.run("list", "--here").out
    ended = site.run("verify")
    assert ended.code == 1
    assert f"damaged manifest: {reference}" in ended.out
    assert "6 pictures are whole" in ended.out
    assert "nothing was removed" in refused(site.run("gc", "--min-age-hours", "0"), "DIGEST_MISMATCH")
    refused(site.run("show", reference), "DIGEST_MISMATCH")
    assert len(list((site.folder / "pictures").rglob("?" * 64))) == 12
    assert site.run("delete", reference).code == 0
    assert site.run("gc", "--min-age-hours", "0", "--json").json["pictures"] == 6


def test_importing_again_mends_a_damaged_picture_and_makes_all_of_them_young(site: Site, tmp_path: Path) -> None:
    source = table(tmp_path / "in")
    reference = site.take(source, "csv")
    paths = [path for path in (site.folder / "pictures").rglob("?" * 64) if path.is_file()]
    for path in paths:
        os.utime(path, (1000, 1000))
    paths[0].write_bytes(b"x")
    site.run("delete", reference)
    assert site.take(source, "csv") == reference
    assert site.run("verify").code == 0
    site.run("delete", reference)
    assert site.run("gc", "--json").json["pictures"] == 0, "what was imported again today is young"


def test_a_collection_waits_for_an_import_and_takes_none_of_its_pictures(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, removed = datasets_import._keep, list[Usage]()

    def keep(*arguments: Any) -> None:
        real(*arguments)
        with pytest.raises(MeshError) as error:
            PictureFolder(site.folder, FolderLimits(lock_wait_s=0.0)).remove_unused(1e12)
        assert error.value.reason is Reason.SERVICE_UNAVAILABLE
        removed.append(PictureFolder(site.folder).usage())

    monkeypatch.setattr(datasets_import, "_keep", keep)
    reference = site.take(table(tmp_path / "in"), "csv")
    assert [one.pictures for one in removed] == [12]
    assert "12 pictures are whole" in site.run("verify", reference).out
