"""``splitmesh datasets push | pull``: pictures between this site and its cloud, as far as the site's rules let them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from splitmesh.cli.connect import channels, registry_of
from splitmesh.cli.datasets_options import (
    Chosen,
    DatasetArgument,
    FolderOption,
    SharingOption,
    checked_name,
    datasets_of,
    find_dataset,
    folder_path,
    sharing_of,
    site_folder,
)
from splitmesh.cli.datasets_shown import pictures
from splitmesh.cli.models_aliases import ByOption
from splitmesh.cli.models_pull import LimitOption
from splitmesh.cli.models_shown import transfer
from splitmesh.cli.output import JsonOption, run, show_json
from splitmesh.cli.who import who
from splitmesh.client.dataset_copies import ENDING, Copies
from splitmesh.client.dataset_log import SyncLog
from splitmesh.client.dataset_publish import push_version
from splitmesh.client.dataset_pull import Pulled, look_for, pull_pictures
from splitmesh.client.dataset_push import Pushed
from splitmesh.client.dataset_sharing import NO_RULE
from splitmesh.errors import MeshError, field_error

LOG = "sync.jsonl"


def push(
    dataset: DatasetArgument,
    name: Annotated[str, typer.Option(help="Of the dataset, for a manifest that has none yet.")] = "",
    by: ByOption = "",
    folder: FolderOption = None,
    sharing: SharingOption = None,
    limit_mbit: LimitOption = None,
    json: JsonOption = False,
) -> None:
    """Send what this site lets go and the registry does not have; run again, it goes on where it stopped.

    Where the rules let only thumbnails go, they become a dataset of their own, NAME-thumbnails, with those of other sites. What
    the rules let go no more is not in its next version; `delete` takes the earlier ones away."""

    async def work() -> tuple[Chosen, Pushed, Copies]:
        here, rules = site_folder(folder), sharing_of(sharing)
        async with channels() as opened:
            client = datasets_of(opened, limit_mbit)
            chosen = await find_dataset(dataset, here, client)
            if chosen.info is None:
                rules.require_manifest(checked_name(name))
            elif name not in ("", chosen.name):
                raise field_error("name", f"the dataset is called {chosen.name!r}")
            if rules.makes_thumbnails(chosen.name or name):
                rules.require_manifest(chosen.name or name)
                checked_name(f"{chosen.name or name}{ENDING}")
            info = chosen.info or await client.create(name, chosen.dataset, created_by=by or who())
            chosen = replace(chosen, name=info.dataset, info=info)
            log = _Log(folder, chosen, by)
            log.add("pushing")
            with log.failing("push failed"), transfer(chosen.title) as on_progress:
                pushed, copies = await push_version(
                    registry_of(opened, limit_mbit),
                    client,
                    info,
                    chosen.dataset,
                    here,
                    rules,
                    created_by=by or who(),
                    on_progress=on_progress,
                )
            log.add("pushed", _plain(pushed))
        return chosen, pushed, copies

    chosen, pushed, copies = run(work())
    if json:
        known = {"thumbnails_version": copies.version, "thumbnails_still_there": copies.still}
        show_json({"dataset": chosen.title, **_plain(pushed), **known})
        return
    print(f"{chosen.title}: {pushed.sent:,} sent ({pushed.sent_bytes:,} bytes), {pushed.there:,} were there already")
    _show_copies(copies, pushed.thumbnails)
    for why, count in pushed.stayed.items():
        hint = "" if sharing or why != NO_RULE else " (there is no --sharing and no SPLITMESH_SHARING)"
        print(f"stayed: {count:,}, {why}{hint}")
    for count, what in ((pushed.not_here, "are not at this site"), (pushed.damaged, "are damaged at this site")):
        if count:
            print(f"not sent: {count:,} {what}")


def _show_copies(copies: Copies, thumbnails: int) -> None:
    if copies.version is None:
        return
    title = f"{copies.version.dataset}:{copies.version.version}"
    if copies.still:
        print(f"{title} has {copies.still:,} pictures that this site does not let go; to take it away:")
        print(f"splitmesh datasets delete {title}")
    elif thumbnails:
        print(f"{thumbnails:,} as thumbnails: {title}")
    else:
        print(f"what this site lets go no more is not in {title}")


def pull(
    dataset: DatasetArgument,
    by: ByOption = "",
    folder: FolderOption = None,
    sharing: SharingOption = None,
    limit_mbit: LimitOption = None,
    json: JsonOption = False,
) -> None:
    """Fetch the manifest and the pictures that the registry has and this site does not, or not whole any more.

    Those that are here are read and compared with their digests; what comes is checked before it is kept."""

    async def work() -> tuple[Chosen, Pulled]:
        here, rules = site_folder(folder), sharing_of(sharing)
        async with channels() as opened:
            chosen = await find_dataset(dataset, here, datasets_of(opened, limit_mbit))
            if chosen.info is None:
                raise field_error("dataset", "is not in the registry: give NAME or NAME:VERSION")
            rules.require_accepted(chosen.name)
            await asyncio.to_thread(here.keep_manifest, chosen.dataset)
            log = _Log(folder, chosen, by)
            log.add("pulling")
            with log.failing("pull failed"):
                with pictures("checking") as on_checked:
                    lacking = await asyncio.to_thread(look_for, chosen.dataset, here, on_checked=on_checked)
                with transfer(chosen.title) as on_progress:
                    registry = registry_of(opened, limit_mbit)
                    about = (chosen.name, chosen.dataset, here, rules, lacking)
                    pulled = await pull_pictures(registry, *about, on_progress=on_progress)
        log.add("pulled", _plain(pulled))
        return chosen, pulled

    chosen, pulled = run(work())
    if json:
        show_json({"dataset": chosen.title, **_plain(pulled)})
    else:
        print(
            f"{chosen.title}: {pulled.fetched:,} fetched ({pulled.fetched_bytes:,} bytes), {pulled.here:,} were here already"
        )
        if pulled.elsewhere:
            print(f"{pulled.elsewhere:,} stayed at their sites")
        if pulled.damaged:
            print(f"{pulled.damaged:,} are damaged here, and the registry does not have them")
        for digest, problem in pulled.problems:
            print(f"refused: {digest}: {problem}")
    if pulled.refused or pulled.damaged:
        raise typer.Exit(1)


class _Log:
    """What is done with one dataset, on this site's disk before the first byte leaves and when it ended."""

    def __init__(self, folder: Path | None, chosen: Chosen, by: str) -> None:
        self._log = SyncLog(folder_path(folder) / LOG)
        self._about = {"dataset": chosen.title, "manifest": chosen.sha256, "by": by or who()}

    def add(self, what: str, values: Mapping[str, object] | None = None) -> None:
        self._log.add(datetime.now(UTC), what, {**self._about, **(values or {})})

    @contextmanager
    def failing(self, what: str) -> Iterator[None]:
        try:
            yield
        except MeshError as error:
            self.add(what, {"reason": error.reason.value})
            raise


def _plain(done: Pushed | Pulled) -> dict[str, object]:
    return {name: getattr(done, name) for name in (_PULLED if isinstance(done, Pulled) else _PUSHED)}


_PUSHED = ("sent", "sent_bytes", "there", "thumbnails", "not_here", "damaged", "stayed")
_PULLED = ("fetched", "fetched_bytes", "here", "elsewhere", "damaged", "refused", "problems")
