"""``splitmesh datasets export | duplicates | verify | gc``: the pictures that are at this site."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

import typer

from splitmesh.cli.connect import channels
from splitmesh.cli.datasets_options import (
    LOCAL,
    Chosen,
    DatasetArgument,
    FolderOption,
    datasets_of,
    find_dataset,
    site_folder,
)
from splitmesh.cli.datasets_shown import pictures
from splitmesh.cli.output import JsonOption, run, show_json, show_table
from splitmesh.datasets.files import FORMS, Written, write
from splitmesh.datasets.folder import UNREADABLE, PictureFolder, Usage
from splitmesh.datasets.manifest import Dataset, Entry
from splitmesh.datasets.near import DISTANCE, SIMILARITY, Near, near_duplicates
from splitmesh.errors import MeshError, Reason

HOUR_S = 3600.0


def export(
    dataset: DatasetArgument,
    form: Annotated[str, typer.Option(help=f"{', '.join(FORMS)}.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="A new or empty folder.")],
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out pictures that are not at this site.")
    ] = False,
    folder: FolderOption = None,
    json: JsonOption = False,
) -> None:
    """Write a version as the files of another tool; the folder appears whole or not at all."""

    async def work() -> tuple[Chosen, Written]:
        here = site_folder(folder)
        chosen = await _find(dataset, here)

        def to_files() -> Written:
            with pictures("writing") as on_picture:
                return write(
                    chosen.dataset,
                    here.read,
                    out,
                    form,  # type: ignore[arg-type]  # it checks the form
                    skip_missing=skip_missing,
                    on_picture=on_picture,
                )

        return chosen, await asyncio.to_thread(to_files)

    chosen, written = run(work())
    if json:
        show_json({"dataset": chosen.title, "out": out, "form": form, "written": written})
        return
    missing = f"; {written.missing:,} are not at this site and were left out" if written.missing else ""
    print(f"{out}: {written.pictures:,} pictures of {chosen.title} as {form}{missing}")


def duplicates(
    dataset: DatasetArgument,
    distance: Annotated[int, typer.Option(min=0, max=7, help="Bits in which the hashes may differ.")] = DISTANCE,
    similarity: Annotated[float, typer.Option(min=-1, max=1, help="Least correlation of the pixels.")] = SIMILARITY,
    most: Annotated[int, typer.Option(min=1, max=10_000, help="Pairs that are told.")] = 20,
    check: Annotated[bool, typer.Option("--check", help="End with code 1 when a pair is in different splits.")] = False,
    folder: FolderOption = None,
    json: JsonOption = False,
) -> None:
    """Find pictures that look the same; pairs in different splits first, for they make a test too easy."""

    async def work() -> tuple[Chosen, Near]:
        here = site_folder(folder)
        chosen = await _find(dataset, here)

        def compare() -> Near:
            with pictures("comparing") as on_progress:
                return near_duplicates(
                    chosen.dataset.entries,
                    here.read,
                    max_distance=distance,
                    min_similarity=similarity,
                    max_pairs=most,
                    on_progress=on_progress,
                )

        return chosen, await asyncio.to_thread(compare)

    chosen, found = run(work())
    if json:
        show_json({"dataset": chosen.title, "near": found})
    else:
        _show_near(chosen.dataset, found)
    if check and found.leaks:
        raise typer.Exit(1)


def _show_near(dataset: Dataset, found: Near) -> None:
    by_digest = {entry.picture: entry for entry in dataset.entries}
    rows = []
    for pair in found.pairs:
        one, other = by_digest[pair.one], by_digest[pair.other]
        rows.append(
            [
                "leak" if pair.leak else "",
                _where(one),
                _where(other),
                one.picture[:12],
                other.picture[:12],
                pair.similarity,
            ]
        )
    if rows:
        show_table("", ["", "one", "other", "picture", "picture", "similarity"], rows)
    left_out = f", {found.left_out:,} could not be compared" if found.left_out else ""
    partly = "" if found.complete else "; so many look alike that not all were compared"
    print(f"{found.compared:,} pictures, {found.found:,} pairs, {found.leaks:,} across splits{left_out}{partly}")


def _where(entry: Entry) -> str:
    labels = sorted(set(entry.labels))
    return f"{entry.split} {', '.join(labels[:3]) or 'background'} ({entry.group[:40]})"


def verify(
    dataset: Annotated[str, typer.Argument(help="As for show; without it everything at this site.")] = "",
    folder: FolderOption = None,
    json: JsonOption = False,
) -> None:
    """Read every manifest and picture of a dataset at this site and compare digests; ends with code 1 when one is damaged.

    `pull` fetches damaged ones again where the registry has them; importing the same pictures again mends them too."""

    async def work() -> dict[str, Any]:
        here = site_folder(folder)
        if dataset:
            chosen = await _find(dataset, here)
            titles, damaged = [chosen.title], dict[str, str]()
            digests = {entry.picture for entry in chosen.dataset.entries}
        else:
            titles, digests, damaged = await asyncio.to_thread(_named_here, here)
        pictures_found = await asyncio.to_thread(_verified, digests, here)
        return {"datasets": titles, **pictures_found, "damaged_manifests": damaged}

    found = run(work())
    if json:
        show_json(found)
    else:
        print(f"{found['whole']:,} pictures are whole, {found['missing']:,} are not at this site")
        for digest in found["damaged"]:
            print(f"damaged: {digest}")
        for digest, problem in found["damaged_manifests"].items():
            print(f"damaged manifest: {LOCAL}{digest}: {problem}")
    if found["damaged"] or found["damaged_manifests"]:
        raise typer.Exit(1)


def _named_here(folder: PictureFolder) -> tuple[list[str], set[str], dict[str, str]]:
    """Titles and pictures of the manifests here, and those that cannot be read with why."""
    titles, pictures_named, damaged = list[str](), set[str](), dict[str, str]()
    for digest in folder.manifests():
        try:
            one = folder.manifest(digest)
        except MeshError as error:
            if error.reason not in UNREADABLE:
                raise
            damaged[digest] = error.message
            continue
        titles.append(f"{LOCAL}{digest[:16]}")
        pictures_named.update(entry.picture for entry in one.entries)
    return titles, pictures_named, damaged


def _verified(named: Collection[str], folder: PictureFolder) -> dict[str, Any]:
    digests = sorted(named)
    counts: Counter[str] = Counter(whole=0, missing=0)
    damaged: list[str] = []
    with pictures("verifying") as on_picture:
        for done, digest in enumerate(digests, 1):
            try:
                folder.read(digest)
                counts["whole"] += 1
            except MeshError as error:
                if error.reason is Reason.ARTIFACT_NOT_FOUND:
                    counts["missing"] += 1
                elif error.reason is Reason.DIGEST_MISMATCH:
                    damaged.append(digest)
                else:
                    raise
            on_picture(done, len(digests))
    return {**counts, "damaged": damaged}


def gc(
    min_age_hours: Annotated[
        float, typer.Option(min=0, help="Pictures added since then stay: their manifest may be on its way.")
    ] = 24.0,
    folder: FolderOption = None,
    json: JsonOption = False,
) -> None:
    """Remove pictures at this site that no manifest here names; `delete` takes manifests away. Nothing is removed while a
    manifest cannot be read."""

    async def work() -> Usage:
        try:
            return await asyncio.to_thread(site_folder(folder).remove_unused, time.time() - min_age_hours * HOUR_S)
        except MeshError as error:
            if error.reason in UNREADABLE:
                ways = "datasets verify names what cannot be read, show NAME:VERSION or pull mends it, delete drops it"
                error.message += f" (nothing was removed: {ways})"
            raise

    removed = run(work())
    if json:
        show_json(removed)
        return
    print(f"removed {removed.pictures:,} pictures of {removed.size_bytes:,} bytes")


async def _find(reference: str, folder: PictureFolder) -> Chosen:
    async with channels() as opened:
        return await find_dataset(reference, folder, datasets_of(opened))
