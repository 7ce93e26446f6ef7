"""What options say of a version's origin, how far it is followed, and which commit the current folder is at."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from splitmesh.cli import datasets_options
from splitmesh.cli.models_lineage import MAX_VERSIONS, Ancestor, Ancestry
from splitmesh.cli.models_origin import Origin, git_version
from splitmesh.client.registry import RegistryClient, VersionInfo
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import Channels
from splitmesh.model.lineage import DatasetUse, Lineage, VersionName
from tests.integration.command_line import refused, splitmesh_here

NOBODY = cast(Channels, None)
"""Options that name no dataset ask nobody."""


def test_a_folders_commit_is_told_and_that_it_was_changed(tmp_path: Path) -> None:
    assert git_version(tmp_path) == ""

    def git(*arguments: str) -> str:
        own = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        done = subprocess.run(["git", *own, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "-q")
    (tmp_path / "train.py").write_text("one")
    git("add", "train.py")
    git("commit", "-qm", "one")
    assert git_version(tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "notes").write_text("not of the code")
    assert git_version(tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "train.py").write_text("two")
    assert git_version(tmp_path) == f"{git('rev-parse', 'HEAD')}+dirty"


async def test_options_go_over_what_a_version_brought_with_it() -> None:
    kept = Lineage((VersionName("backbone", 1),), (), "old task", "abc", "r" * 64, (1, 2), {"acc": 0.5, "loss": 2.0})
    made = await Origin(metrics=["acc=0.9"], seeds=[3], task="new task").lineage(NOBODY, kept)
    assert (made.parents, made.code_version, made.recipe_sha256) == (kept.parents, "abc", "r" * 64)
    assert (made.task, made.seeds, dict(made.metrics)) == ("new task", (3,), {"acc": 0.9, "loss": 2.0})
    said = await Origin(models=["other:3"], code_version="").lineage(NOBODY, kept)
    assert (said.parents, said.code_version) == ((VersionName("other", 3),), "")


@pytest.mark.parametrize(
    "origin",
    [
        Origin(metrics=["acc=nan"]),
        Origin(metrics=["=1"]),
        Origin(metrics=["acc"]),
        Origin(models=["other"]),
        Origin(datasets=["boards"]),
        Origin(datasets=["boards:1="]),
        Origin(datasets=["boards:1=Train"]),
        Origin(datasets=["boards:1=" + "x" * 33]),
        Origin(datasets=["x" * 65 + ":1"]),
    ],
)
async def test_options_that_cannot_be_read_are_refused(origin: Origin) -> None:
    with pytest.raises(MeshError) as caught:
        await origin.lineage(NOBODY, Lineage())
    assert caught.value.reason is Reason.FIELD_INVALID


class Datasets:
    """A registry's datasets, of which one was signed."""

    def __init__(self, trusted: str) -> None:
        self.trusted = trusted

    async def get(self, dataset: str, number: int) -> Any:
        return SimpleNamespace(dataset=dataset, version=number, manifest=SimpleNamespace(sha256="d" * 64))

    async def verify(self, version: Any) -> None:
        if version.dataset != self.trusted:
            raise MeshError(Reason.SIGNATURE_MISSING, "nobody signed it")


async def test_a_dataset_is_verified_before_a_lineage_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets_options, "datasets_of", lambda _: Datasets(trusted="boards"))
    made = await Origin(datasets=["boards:3", "boards:2=val"]).lineage(NOBODY, Lineage())
    assert made.datasets == (DatasetUse("boards", 3, "d" * 64, "train"), DatasetUse("boards", 2, "d" * 64, "val"))
    with pytest.raises(MeshError) as caught:
        await Origin(datasets=["boards:3", "cells:1"]).lineage(NOBODY, Lineage())
    assert caught.value.reason is Reason.SIGNATURE_MISSING


def version(model: str, number: int, parent: int = 0, *parents: VersionName) -> VersionInfo:
    made = datetime(2026, 5, 4, tzinfo=UTC)
    return VersionInfo(model, number, parent, {}, "test", "", (), made, Lineage(parents))


class Shelf:
    """A registry that holds these versions only."""

    def __init__(self, *versions: VersionInfo) -> None:
        self.versions = {(one.model, one.version): one for one in versions}

    async def get_version(self, model: str, number: int, **_: Any) -> VersionInfo:
        if (model, number) not in self.versions:
            raise MeshError(Reason.VERSION_NOT_FOUND, "gone")
        return self.versions[model, number]

    async def tree(self, model: str, number: int) -> Ancestor:
        return await Ancestry(cast(RegistryClient, self)).of(self.versions[model, number])


async def test_a_version_that_comes_twice_is_followed_once_and_one_that_is_gone_is_said() -> None:
    shelf = Shelf(
        version("a", 2, 1, VersionName("b", 1), VersionName("lost", 5)),
        version("a", 1, 0, VersionName("b", 1)),
        version("b", 1, 0, VersionName("a", 2)),
    )
    root = await shelf.tree("a", 2)
    assert {one.name: one.note for one in root.parents} == {"a:1": "", "b:1": "", "lost:5": "deleted since"}
    first, second = root.parents[0], root.parents[1]
    assert [(one.name, one.note) for one in first.parents] == [("b:1", "shown elsewhere")]
    assert [(one.name, one.note) for one in second.parents] == [("a:2", "shown elsewhere")]


async def test_a_long_line_of_parents_is_followed_to_a_bound() -> None:
    shelf = Shelf(*(version("a", number, number - 1) for number in range(1, 2 * MAX_VERSIONS)))
    node, depth = await shelf.tree("a", 2 * MAX_VERSIONS - 1), 0
    while node.parents:
        (node,) = node.parents
        depth += 1
    assert (depth, "not followed" in node.note) == (MAX_VERSIONS, True)


async def test_datasets_are_told_of_every_version_and_not_only_of_the_first() -> None:
    seen = DatasetUse("boards", 1, "a" * 64)
    first = replace(version("a", 1), lineage=Lineage(datasets=(seen,)))
    root = await Shelf(version("a", 2, 1), first).tree("a", 2)
    assert [(one.kind, one.name) for one in root.parents[0].parents] == [("dataset", "boards:1")]


def test_without_its_extra_mlflow_is_refused_with_the_way_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "splitmesh.client.export_mlflow", raising=False)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    line = refused(splitmesh_here("models", "export", "a:1", "--mlflow", "http://127.0.0.1:1"), "EXTRA_MISSING")
    assert "[mlflow]" in line
