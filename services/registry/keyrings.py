"""The registry's keyrings: one chain, whose first was signed by the roots that count here.

With a trust root those are the roots in its file, and the first keyring kept is the one that has exactly them; a chain of
other roots, which anybody could push before there was a trust root, counts for nothing and gives way to the first that has
them. Without a trust root the first keyring says itself whose the roots are. Does not know what keys sign.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from services.registry.limits import Slots
from services.registry.metadata.port import MetadataStore
from services.registry.metadata.records import Actor
from services.registry.names import MAX_VERSION
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.trust.keyring import Keyring, not_anchored, roots_of, version_of
from splitmesh.trust.keys import PublicKey, public_keys

log = logging.getLogger(__name__)

MAX_KEYRING_BYTES = 1024 * 1024
MAX_REPLY_BYTES = 8 * 1024 * 1024
"""Of keyrings told at once."""
MAX_PUTS = 16
"""Keyrings being put at once; they wait for each other."""
SET_ASIDE = "keyring.set_aside"
AGAIN_AFTER_S, AGAIN_AFTER_MOST_S = 0.5, 30.0
"""Pauses, which double, between two looks at what is in force after a write whose end nobody saw."""


class Keyrings:
    """The keyrings of one registry.

    Args:
        store: keeps them.
        trust_root: file with the root's public keys; None: there is none.
        told: called with the version of the newest keyring, 0: none, at start and whenever it is another.
        now: the wall clock.
    """

    def __init__(
        self, store: MetadataStore, trust_root: Path | None, told: Callable[[int], None], now: Callable[[], datetime]
    ) -> None:
        self._store = store
        self._trust_root = trust_root
        self._told = told
        self._now = now
        self._roots: Sequence[PublicKey] = ()
        self._newest: Keyring | None = None
        self._aside = 0
        self._known = False
        self._in_order = asyncio.Lock()
        self._slots = Slots("keyrings", MAX_PUTS)
        self._putting: set[asyncio.Task[None]] = set()
        self._looking: asyncio.Task[None] | None = None

    @property
    def verifies(self) -> bool:
        """Whether there is a trust root."""
        return self._trust_root is not None

    async def start(self) -> None:
        """Reads the root and walks the keyrings; NOT_READY when the root cannot be read or the chain is broken."""
        if self._trust_root is not None:
            self._roots = await asyncio.to_thread(_read_roots, self._trust_root)
        await self._adopt()
        self._told(self._version)
        if self._aside:
            await self._tell_set_aside()

    async def stop(self) -> None:
        """Waits for what was accepted."""
        await asyncio.gather(*self._putting, return_exceptions=True)
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    async def newest(self) -> Keyring:
        """The one in force; KEY_UNKNOWN when there is none, SERVICE_UNAVAILABLE when nobody knows."""
        if not self._known:
            async with self._in_order:
                await self._renew()
        if self._newest is None:
            raise MeshError(
                Reason.KEY_UNKNOWN,
                "the registry has only keyrings of other roots than its trust root, so it knows no key: set the right "
                "trust root, or put a keyring of this one (splitmesh keys init)"
                if self._aside
                else "the registry has no keyring yet, so it knows no key: make one (splitmesh keys init)",
            )
        return self._newest

    async def put(self, envelope: bytes, actor: Actor) -> int:
        """Keeps the next keyring, or the first; its version.

        Raises:
            MeshError: SIGNATURE_INVALID, KEYRING_STALE, FIELD_INVALID, STORAGE_FULL, QUEUE_FULL.
        """
        if not 0 < len(envelope) <= MAX_KEYRING_BYTES:
            raise field_error("keyring", f"has {len(envelope)} bytes, expected 1 to {MAX_KEYRING_BYTES}")
        version = await asyncio.to_thread(version_of, envelope)
        if version > MAX_VERSION:
            raise field_error("keyring", f"{version} is no version")
        with self._slots.take() as place:
            # A caller that hangs up in the middle cannot stop the write, and what was written must be in force.
            put = asyncio.create_task(self._put(version, envelope, actor))
            place.keep_until(put)
            self._putting.add(put)
            put.add_done_callback(self._putting.discard)
            await asyncio.shield(put)
        return version

    async def list(self, after: int) -> Sequence[bytes]:
        """Envelopes of newer ones of the chain, oldest first; as many as fit in a reply, and one at least."""
        if self._known and self._newest is None:
            return []
        found = await self._store.keyrings(after)
        sizes = itertools.accumulate(len(one) for one in found)
        return [
            one
            for index, (one, size) in enumerate(zip(found, sizes, strict=True))
            if not index or size <= MAX_REPLY_BYTES
        ]

    async def _put(self, version: int, envelope: bytes, actor: Actor) -> None:
        async with self._in_order:
            await self._renew()
            known = await self._store.keyrings(0)
            first = self._newest is None
            await asyncio.to_thread(self._check, known, version, envelope)
            self._known = False
            try:
                await self._store.put_keyring(version, envelope, actor, self._now(), first=first)
            finally:
                # A database that did not answer may have kept it all the same: what is there now counts.
                try:
                    await self._renew()
                except MeshError:
                    self._look_again()
                    raise

    def _look_again(self) -> None:
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._until_known())

    async def _until_known(self) -> None:
        """Whoever was to be told of the keyring, such as of a revocation, waits for nobody's next call."""
        pause_s = AGAIN_AFTER_S
        while not self._known:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, AGAIN_AFTER_MOST_S)
            try:
                async with self._in_order:
                    await self._renew()
            except MeshError as error:
                log.warning("nobody knows which keyring is in force, looking again in %g s: %s", pause_s, error)

    def _check(self, known: Sequence[bytes], version: int, envelope: bytes) -> None:
        if self._newest is None:
            roots = self._roots or roots_of(envelope)
            if Keyring.anchor(roots, envelope) is None:
                raise not_anchored(roots)
        # What does not follow by its number is the store's to refuse, not told as a broken chain.
        elif version == self._newest.version + 1:
            Keyring.follow(self._roots or roots_of(known[0]), [*known, envelope])
        elif not self._roots and envelope not in known and roots_of(envelope) != roots_of(known[0]):
            raise MeshError(
                Reason.KEYRING_STALE,
                "somebody put keyrings of other roots here, and no trust root says which count: set one "
                "(SPLITMESH_TRUST_ROOT) on the registry, and put this one again",
                metadata={"version": str(version), "newest": str(self._newest.version)},
            )

    async def _renew(self) -> None:
        """Nothing where it is known what is in force."""
        if self._known:
            return
        before = self._version
        await self._adopt()
        if self._version != before:
            self._told(self._version)

    async def _adopt(self) -> None:
        envelopes = await self._store.keyrings(0)
        self._newest = await asyncio.to_thread(self._followed, envelopes)
        self._aside = len(envelopes) if self._newest is None else 0
        self._known = True

    def _followed(self, envelopes: Sequence[bytes]) -> Keyring | None:
        """The newest of the chain; None where nothing is kept, or nothing of these roots."""
        if not envelopes:
            return None
        try:
            roots = self._roots or roots_of(envelopes[0])
            if not any(Keyring.anchor(roots, envelope) for envelope in envelopes):
                return None
            return Keyring.follow(roots, envelopes)
        except MeshError as error:
            raise MeshError(
                Reason.NOT_READY, f"the keyrings kept here do not follow from the trust root: {error.message}"
            ) from error

    async def _tell_set_aside(self) -> None:
        about = f"{self._aside} kept, none of the roots that count here"
        log.error(
            "the keyrings kept here count for nothing: %s; set the right trust root, or put a keyring of this one",
            about,
        )
        latest = await self._store.list_events("keyring", 0, 1)
        if not latest or latest[0].kind != SET_ASIDE:
            await self._store.record(SET_ASIDE, "keyring", "keyring", Actor("registry"), about, self._now())

    @property
    def _version(self) -> int:
        return self._newest.version if self._newest else 0


def _read_roots(path: Path) -> Sequence[PublicKey]:
    try:
        return public_keys(path.read_bytes())
    except (OSError, MeshError) as error:
        raise MeshError(Reason.NOT_READY, f"the trust root {path} cannot be read: {error}") from error
