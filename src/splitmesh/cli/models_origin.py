"""What a person says of where a version comes from: options as a lineage, looked up where the registry knows more."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from splitmesh.client.registry import RegistryClient
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.kernel.channels import Channels
from splitmesh.model.lineage import DatasetUse, Lineage, VersionName

GIT_DEADLINE_S = 10.0

_DATASET = re.compile(
    r"(?P<name>[a-z0-9][a-z0-9._-]{0,63}):(?P<version>[0-9]{1,9})(=(?P<role>[a-z0-9][a-z0-9._-]{0,31}))?"
)
_MODEL = re.compile(r"(?P<name>[a-z0-9][a-z0-9._-]{0,63}):(?P<version>[0-9]{1,9})")

ParentOption = Annotated[int, typer.Option(min=0, help="Version of this model that it was made from.")]
FromOption = Annotated[
    list[str] | None,
    typer.Option(
        "--from-model", metavar="NAME:V", help="Version of another model that it was made from; may be repeated."
    ),
]
DatasetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--dataset", metavar="NAME:V[=ROLE]", help="Data it was made with (role train if not said); repeatable."
    ),
]
MetricOption = Annotated[
    list[str] | None, typer.Option("--metric", metavar="NAME=VALUE", help="A figure of it; may be repeated.")
]
SeedOption = Annotated[list[int] | None, typer.Option("--seed", help="Of the random numbers; may be repeated.")]
CodeOption = Annotated[
    str | None,
    typer.Option("--code-version", help="Of the code that made it; else the git commit here.", show_default=False),
]
TaskOption = Annotated[str, typer.Option("--task", help="Task or job that made it.")]


@dataclass(frozen=True, slots=True)
class Origin:
    """What the options say."""

    models: Sequence[str] = ()
    datasets: Sequence[str] = ()
    metrics: Sequence[str] = ()
    seeds: Sequence[int] = ()
    code_version: str | None = None
    task: str = ""

    async def lineage(self, opened: Channels, kept: Lineage | None) -> Lineage:
        """As a lineage, over what is ``kept`` from an earlier registry.

        Raises:
            MeshError: FIELD_INVALID, an option cannot be read; DATASET_NOT_FOUND, VERSION_NOT_FOUND; SIGNATURE_MISSING,
                SIGNATURE_INVALID, KEY_UNKNOWN, KEY_REVOKED: a dataset may not be used here.
        """
        named = tuple(_model(text) for text in self.models)
        data = [await _dataset(opened, text) for text in self.datasets]
        metrics = dict(_metric(text) for text in self.metrics)
        kept = kept or Lineage(code_version=git_version(Path.cwd()))
        return replace(
            kept,
            parents=named or kept.parents,
            datasets=tuple(data) or kept.datasets,
            task=self.task or kept.task,
            code_version=kept.code_version if self.code_version is None else self.code_version,
            seeds=tuple(self.seeds) or kept.seeds,
            metrics={**kept.metrics, **metrics},
        )


async def known_here(registry: RegistryClient, opened: Channels, lineage: Lineage) -> Lineage:
    """Without the versions that this registry does not have, which is said: it refuses a lineage that leads nowhere."""
    parents = [one for one in lineage.parents if await _has_version(registry, one)]
    datasets = [one for one in lineage.datasets if await _has_dataset(opened, one)]
    left_out = [
        *(f"{one.model}:{one.version}" for one in lineage.parents if one not in parents),
        *(f"{one.dataset}:{one.version}" for one in lineage.datasets if one not in datasets),
    ]
    if left_out:
        text = f"note: the lineage names {', '.join(left_out)}, which this registry does not have; left out"
        print(text, file=sys.stderr)
    return replace(lineage, parents=tuple(parents), datasets=tuple(datasets))


def git_version(folder: Path) -> str:
    """The commit that ``folder`` is at, ``+dirty`` when files differ from it; empty where there is none."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"{commit}+dirty" if changed else commit


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=GIT_DEADLINE_S
    )
    return done.stdout.strip()


def _metric(text: str) -> tuple[str, float]:
    name, _, number = text.rpartition("=")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not name or not math.isfinite(value):
        raise field_error("metric", f"{text[:80]!r} is not NAME=VALUE with a finite number")
    return name, value


def _model(text: str) -> VersionName:
    found = _MODEL.fullmatch(text)
    if found is None:
        raise field_error("from_model", f"{text[:80]!r} is not NAME:VERSION")
    return VersionName(found["name"], int(found["version"]))


async def _dataset(opened: Channels, text: str) -> DatasetUse:
    from splitmesh.cli.datasets_options import datasets_of

    found = _DATASET.fullmatch(text)
    if found is None:
        raise field_error("dataset", f"{text[:80]!r} is not NAME:VERSION or NAME:VERSION=ROLE")
    name, number = found["name"], int(found["version"])
    client = datasets_of(opened)
    known = await client.get(name, number)
    await client.verify(known)
    return DatasetUse(name, number, known.manifest.sha256, found["role"] or "train")


async def _has_version(registry: RegistryClient, one: VersionName) -> bool:
    try:
        await registry.get_version(one.model, one.version)
    except MeshError as error:
        if error.reason in (Reason.MODEL_NOT_FOUND, Reason.VERSION_NOT_FOUND):
            return False
        raise
    return True


async def _has_dataset(opened: Channels, one: DatasetUse) -> bool:
    from splitmesh.cli.datasets_options import datasets_of

    try:
        known = await datasets_of(opened).get(one.dataset, one.version)
    except MeshError as error:
        if error.reason in (Reason.DATASET_NOT_FOUND, Reason.VERSION_NOT_FOUND):
            return False
        raise
    return known.manifest.sha256 == one.sha256
