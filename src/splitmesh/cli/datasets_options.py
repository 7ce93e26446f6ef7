"""Options that several `splitmesh datasets` commands share, and which dataset their argument means."""

from __future__ import annotations

import asyncio
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from splitmesh.cli.connect import BYTES_PER_MBIT, mesh_settings
from splitmesh.client.rate import Rate
from splitmesh.datasets.divide import SHARES, SPLITS, Split, checked_shares
from splitmesh.datasets.folder import PictureFolder
from splitmesh.datasets.manifest import Dataset
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.kernel.config import data_dir_default

if TYPE_CHECKING:
    from splitmesh.client.dataset_sharing import Sharing
    from splitmesh.client.datasets import DatasetClient, DatasetVersionInfo
    from splitmesh.kernel.channels import Channels

LOCAL = "sha256:"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_REFERENCE = re.compile(rf"(?P<name>{_NAME.pattern})(?::(?P<version>[0-9]{{1,9}}))?")

DatasetArgument = Annotated[
    str, typer.Argument(help="NAME (its newest version), NAME:VERSION, or sha256:BEGINNING of a manifest at this site.")
]
FolderOption = Annotated[
    Path | None,
    typer.Option(
        "--folder",
        file_okay=False,
        envvar="SPLITMESH_DATASETS",
        help="Pictures and manifests of this site; else $XDG_STATE_HOME/splitmesh/datasets.",
        show_default=False,
    ),
]
SharingOption = Annotated[
    Path | None,
    typer.Option(
        "--sharing",
        dir_okay=False,
        envvar="SPLITMESH_SHARING",
        help="YAML or JSON: what this site lets go. Without it no picture leaves.",
        show_default=False,
    ),
]
SeedOption = Annotated[int, typer.Option(help="Of the division into train, val and test.")]
DescriptionOption = Annotated[str, typer.Option(help="Free text.")]
PushOption = Annotated[
    bool, typer.Option("--push/--no-push", help="Make a version in the registry: the manifest, never a picture.")
]


@dataclass(frozen=True)
class Chosen:
    """A dataset that an argument means."""

    name: str
    """Empty for a manifest of this site that was asked for by its digest."""
    dataset: Dataset
    sha256: str
    info: DatasetVersionInfo | None
    """None: as for ``name``."""

    @property
    def title(self) -> str:
        """As the argument might have been."""
        return f"{self.info.dataset}:{self.info.version}" if self.info else f"{LOCAL}{self.sha256[:16]}"


def site_folder(folder: Path | None) -> PictureFolder:
    """Of this site."""
    return PictureFolder(folder_path(folder))


def folder_path(folder: Path | None) -> Path:
    """Where it is."""
    return folder or data_dir_default("datasets")


def datasets_of(opened: Channels, limit_mbit: float | None = None) -> DatasetClient:
    """Datasets in the registry of this mesh, verified and signed as the settings say."""
    from splitmesh.client.datasets import DatasetClient
    from splitmesh.client.trust import trust_for

    rate = None if limit_mbit is None else Rate(limit_mbit * BYTES_PER_MBIT)
    return DatasetClient(opened, trust=trust_for(mesh_settings(), opened), rate=rate)


def sharing_of(path: Path | None) -> Sharing:
    """The site's rules; those of no file let nothing go."""
    from splitmesh.client.dataset_sharing import Sharing

    return Sharing() if path is None else Sharing.from_file(path)


async def find_dataset(
    reference: str, folder: PictureFolder, client: DatasetClient, *, count_pictures: bool = False
) -> Chosen:
    """What an argument means; its manifest from this site where it is here, else from the registry. One that was damaged here is
    fetched and kept again. FIELD_INVALID, DATASET_NOT_FOUND, VERSION_NOT_FOUND, DIGEST_MISMATCH."""
    if reference.startswith(LOCAL):
        sha256 = local_manifest(reference, folder)
        return Chosen("", await asyncio.to_thread(folder.manifest, sha256), sha256, None)
    name, version = name_and_version(reference)
    info = await client.get(name, version, count_pictures=count_pictures)
    sha256 = info.manifest.sha256
    damaged = False
    if folder.kept_at(sha256):
        await client.verify(info)
        try:
            return Chosen(name, await asyncio.to_thread(folder.manifest, sha256), sha256, info)
        except MeshError as error:
            if error.reason not in (Reason.ARTIFACT_NOT_FOUND, Reason.DIGEST_MISMATCH):
                raise
            damaged = error.reason is Reason.DIGEST_MISMATCH
    from splitmesh.cli.models_shown import transfer

    with transfer(reference) as on_progress:
        dataset = await client.manifest(info, on_progress=on_progress)
    if damaged:
        await asyncio.to_thread(folder.keep_manifest, dataset)
        print(f"note: the manifest of {reference} was damaged at this site; it was fetched again", file=sys.stderr)
    return Chosen(name, dataset, sha256, info)


def name_and_version(reference: str) -> tuple[str, int]:
    """``NAME`` (0: the newest) or ``NAME:3``. FIELD_INVALID."""
    found = _REFERENCE.fullmatch(reference)
    if found is None:
        raise field_error("dataset", f"{reference[:80]!r} is not NAME, NAME:VERSION or {LOCAL}BEGINNING")
    return found["name"], int(found["version"] or 0)


def checked_name(name: str) -> str:
    """FIELD_INVALID for what the registry would refuse after everything was read."""
    if not _NAME.fullmatch(name):
        problem = "is not 1 to 64 lower-case letters, digits, dots, dashes and underscores, a letter or digit first"
        raise field_error("name", f"{name[:80]!r} {problem}")
    return name


def local_manifest(reference: str, folder: PictureFolder) -> str:
    """The digest that begins as ``sha256:BEGINNING`` says, of a manifest at this site, which is not read. FIELD_INVALID,
    ARTIFACT_NOT_FOUND."""
    beginning = reference.removeprefix(LOCAL)
    found = [digest for digest in folder.manifests() if digest.startswith(beginning)]
    if not re.fullmatch(r"[0-9a-f]{4,64}", beginning) or len(found) > 1:
        raise field_error("dataset", f"{beginning[:70]!r} is not the beginning of one digest: give more of it")
    if not found:
        raise MeshError(Reason.ARTIFACT_NOT_FOUND, f"no manifest that begins with {beginning} is at this site")
    return found[0]


def shares_of(text: str) -> dict[Split, float]:
    """``0.8,0.1,0.1``: of train, val and test. FIELD_INVALID."""
    try:
        values = [float(part) for part in text.split(",")]
        if len(values) != len(SPLITS):
            raise ValueError
    except ValueError as error:
        example = ",".join(str(share) for share in SHARES.values())
        raise field_error(
            "split", f"{text[:40]!r} is not three shares of train, val and test, such as {example}"
        ) from error
    return checked_shares(dict(zip(SPLITS, values, strict=True)))
