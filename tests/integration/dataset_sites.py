"""A site alone, or a registry with two, and a dataset to import, for tests of `splitmesh datasets`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitmesh.datasets.folder import PictureFolder
from splitmesh.datasets.manifest import Dataset
from tests.integration.command_line import Ended, splitmesh_here
from tests.integration.registry_world import World, running
from tests.unit.dataset_files import lay, png

COUNT = 8
RULES = """
schema_version: 1
manifests: [boards]
pictures:
  - {labels: [bad], share: whole}
  - {sites: [lyon], share: thumbnail, long_side: 16}
"""


NOWHERE = "registry=127.0.0.1:1"


class Site:
    """A folder of pictures and the commands that work in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *arguments: object, **settings: str) -> Ended:
        return splitmesh_here("datasets", *arguments, "--folder", self.folder, STATIC_ADDRESSES=NOWHERE, **settings)

    def take(self, source: Path, form: str, *options: object) -> str:
        """Import; what the manifest is called."""
        arguments = (source, "--form", form, "--name", "boards", "--no-push", "--json", *options)
        return f"sha256:{self.run('import', *arguments).json['manifest']}"

    def dataset(self, reference: str) -> Dataset:
        return PictureFolder(self.folder).manifest(reference.removeprefix("sha256:"))


def table(folder: Path, count: int = 12, **labels: str) -> Path:
    """A CSV of pictures, two of each unit."""
    rows = [f"{n}.png,{labels.get(f'p{n}', ('bad', 'good')[n % 2])},u{n // 2},lyon" for n in range(count)]
    files: dict[str, bytes | str] = {f"{n}.png": png(n) for n in range(count)}
    return lay(folder, {**files, "labels.csv": "\n".join(["image,label,unit,site", *rows])})


@dataclass
class Sites:
    """A registry, two sites, and a dataset to import."""

    world: World
    folder: Path

    async def run(self, site: str, *arguments: object, **settings: str) -> Ended:
        folder = ("--folder", self.folder / site) if site else ()
        address = f"registry={self.world.address}"
        return await asyncio.to_thread(
            splitmesh_here, "datasets", *arguments, *folder, STATIC_ADDRESSES=address, **settings
        )

    async def take(self, site: str = "lyon") -> dict[str, Any]:
        made = await self.run(
            site, "import", self.folder / "in", "--form", "csv", "--name", "boards", "--json", "--by", "ana"
        )
        version: dict[str, Any] = made.json["version"]
        return version

    def log(self, site: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / site / "sync.jsonl").read_text().splitlines()]

    def pictures(self, site: str) -> PictureFolder:
        return PictureFolder(self.folder / site)

    def file_of(self, site: str, kind: str, digest: str) -> Path:
        """Where a picture or a manifest is kept."""
        return self.folder / site / kind / digest[:2] / digest[2:4] / digest


@asynccontextmanager
async def two_sites(folder: Path) -> AsyncIterator[Sites]:
    """Nothing imported yet."""
    rows = [f"{n}.png,{('bad', 'good')[n % 2]},lyon" for n in range(COUNT)]
    files: dict[str, bytes | str] = {f"{n}.png": png(n, 40, 20) for n in range(COUNT)}
    lay(folder / "in", {**files, "labels.csv": "\n".join(["image,label,site", *rows])})
    lay(folder, {"rules.yaml": RULES})
    async with running(folder / "registry") as world:
        yield Sites(world, folder)
