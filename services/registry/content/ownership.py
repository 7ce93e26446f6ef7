"""Whose contents these are: a mark beside them names the one database whose word decides what may be removed.

It also names the start of the registry that left it, for a copy of a database has its identity too.
"""

from __future__ import annotations

import logging

from services.registry.content.shelf import Shelf
from splitmesh.errors import MeshError, Reason

log = logging.getLogger(__name__)

MARK = "belongs-to"
"""Name of the mark, in a folder and in a bucket."""
MARK_BYTES = 256
"""Most that is read of it."""


class Ownership:
    """Of one shelf. Until somebody claims it, it may be anybody's.

    Args:
        shelf: where the mark is.
        start: random, of this start of the registry.
    """

    def __init__(self, shelf: Shelf, start: str) -> None:
        self._shelf = shelf
        self._start = start
        self._identity: str | None = None

    async def claim(self, identity: str, *, adopt: bool) -> None:
        """See :meth:`services.registry.content.port.ContentStore.claim`."""
        owner, _ = await self._mark()
        if owner not in (None, identity):
            if not adopt:
                raise self._not_ours(owner, identity)
            log.warning("the contents in %s belonged to the database %s and are taken over", self._shelf.shown, owner)
        await self._shelf.belong(f"{identity} {self._start}")
        self._identity = identity
        # Of two that mark an empty place at the same time one finds the other here.
        await self.require_ours()

    async def require_ours(self) -> None:
        """NOT_READY when a registry with another database, or with a copy of ours, has claimed the place since, or its mark is
        gone."""
        if self._identity is None:
            return
        owner, start = await self._mark()
        if owner != self._identity:
            raise self._not_ours(owner, self._identity)
        if start != self._start:
            raise MeshError(
                Reason.NOT_READY,
                f"another registry has started on the contents in {self._shelf.shown} since this one did, with the same database "
                f"({owner}) or a copy of it; each copy needs a folder, or a bucket or prefix, of its own",
            )

    async def _mark(self) -> tuple[str | None, str]:
        """The database and the start that the mark names; None: nobody said."""
        mark = await self._shelf.owner()
        if mark is None:
            return None, ""
        identity, _, start = mark.partition(" ")
        return identity, start

    def _not_ours(self, owner: str | None, identity: str) -> MeshError:
        return MeshError(
            Reason.NOT_READY,
            f"the contents in {self._shelf.shown} belong to {f'the database {owner!r}' if owner else 'no database'}, not to this "
            f"registry's ({identity}); if no other registry uses them, start with SPLITMESH_CONTENTS_ADOPT=true",
        )
