"""Which chain of keyrings is in force in a registry, whatever becomes of who put one, of the answer, and of the roots."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from services.registry import keyrings
from services.registry.keyrings import Keyrings
from services.registry.metadata.memory_store import MemoryStore
from services.registry.metadata.records import Actor
from splitmesh.errors import MeshError, Reason
from splitmesh.trust.keyring import Keyring, sign_keyring
from splitmesh.trust.keys import SigningKey
from splitmesh.trust.ring_changes import first_keyring, with_key, with_roots
from splitmesh.trust.trusted_key import TrustedKey

NOW = datetime(2026, 5, 4, tzinfo=UTC)
WAIT_S = 10
ROOT, OTHER, ALICE, BOB = (SigningKey.generate() for _ in range(4))


class Store(MemoryStore):
    """Can stop in the middle of a put, lose its answer, or be away."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.free = asyncio.Event(), asyncio.Event()
        self.free.set()
        self.lose_answers = self.away = self.away_after_put = False
        self.asked_in_vain = asyncio.Event()

    async def put_keyring(
        self, version: int, envelope: bytes, actor: Actor, time: datetime, *, first: bool = False
    ) -> None:
        self.entered.set()
        await self.free.wait()
        await super().put_keyring(version, envelope, actor, time, first=first)
        self.away = self.away_after_put
        if self.lose_answers:
            raise MeshError(Reason.SERVICE_UNAVAILABLE, "the link broke after the commit")

    async def keyrings(self, after: int) -> Sequence[bytes]:
        if self.away:
            self.asked_in_vain.set()
            raise MeshError(Reason.SERVICE_UNAVAILABLE, "the database is away")
        return await super().keyrings(after)


class Registry:
    """Keyrings over a store, and what watchers were told."""

    def __init__(self, folder: Path, store: Store, *roots: SigningKey) -> None:
        path = None
        if roots:
            path = folder / "roots.pem"
            path.write_bytes(b"".join(root.public.to_pem() for root in roots))
        self.told: list[int] = []
        self.heard = asyncio.Event()
        self.keyrings = Keyrings(store, path, self._hear, lambda: NOW)

    def _hear(self, version: int) -> None:
        self.told.append(version)
        self.heard.set()

    async def start(self) -> Registry:
        await self.keyrings.start()
        return self

    async def put(self, envelope: bytes) -> int:
        return await self.keyrings.put(envelope, Actor("operator"))


def chain(root: SigningKey) -> list[tuple[Keyring, bytes]]:
    """Three keyrings: empty, with Alice, with Bob as well; all signed by the root."""
    rings = [first_keyring([root.public], 1)]
    for key, name in ((ALICE, "alice"), (BOB, "bob")):
        rings.append(with_key(rings[-1], TrustedKey(key.public, name)))
    return [(ring, sign_keyring(ring, [root])) for ring in rings]


async def refused(put: object, reason: Reason) -> None:
    with pytest.raises(MeshError) as error:
        await put  # type: ignore[misc]
    assert error.value.reason is reason


async def test_a_keyring_is_in_force_although_who_put_it_hung_up(tmp_path: Path) -> None:
    store = Store()
    registry = await Registry(tmp_path, store, ROOT).start()
    rings = chain(ROOT)
    await registry.put(rings[0][1])
    store.free.clear()
    store.entered.clear()
    call = asyncio.create_task(registry.put(rings[1][1]))
    async with asyncio.timeout(WAIT_S):
        await store.entered.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        asked = asyncio.create_task(registry.keyrings.newest())
        store.free.set()
        await registry.keyrings.stop()
    assert await asked == rings[1][0]
    assert registry.told == [0, 1, 2]
    assert await registry.put(rings[1][1]) == 2
    assert registry.told == [0, 1, 2]


async def test_a_keyring_whose_answer_was_lost_is_in_force(tmp_path: Path) -> None:
    store = Store()
    registry = await Registry(tmp_path, store, ROOT).start()
    ring, envelope = chain(ROOT)[0]
    store.lose_answers = True
    await refused(registry.put(envelope), Reason.SERVICE_UNAVAILABLE)
    assert await registry.keyrings.newest() == ring
    assert registry.told == [0, 1]


async def test_while_nobody_can_tell_which_keyring_is_in_force_no_key_counts(tmp_path: Path) -> None:
    store = Store()
    registry = await Registry(tmp_path, store, ROOT).start()
    rings = chain(ROOT)
    await registry.put(rings[0][1])
    store.away_after_put = True
    await refused(registry.put(rings[1][1]), Reason.SERVICE_UNAVAILABLE)
    await refused(registry.keyrings.newest(), Reason.SERVICE_UNAVAILABLE)
    store.away = False
    assert await registry.keyrings.newest() == rings[1][0]
    assert registry.told == [0, 1, 2]
    await registry.keyrings.stop()


async def test_who_watches_is_told_of_a_keyring_as_soon_as_the_database_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyrings, "AGAIN_AFTER_S", 0.0)
    store = Store()
    registry = await Registry(tmp_path, store, ROOT).start()
    rings = chain(ROOT)
    await registry.put(rings[0][1])
    store.away_after_put = True
    await refused(registry.put(rings[1][1]), Reason.SERVICE_UNAVAILABLE)
    store.asked_in_vain.clear()
    registry.heard.clear()
    async with asyncio.timeout(WAIT_S):
        await store.asked_in_vain.wait()
        assert registry.told == [0, 1]
        store.away = False
        await registry.heard.wait()
    assert registry.told == [0, 1, 2]
    await refused(registry.put(rings[2][1]), Reason.SERVICE_UNAVAILABLE)
    async with asyncio.timeout(WAIT_S):
        await registry.keyrings.stop()
    assert len(asyncio.all_tasks()) == 1


async def test_a_chain_of_other_roots_counts_for_nothing_and_gives_way_to_one_of_the_right_roots(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store()
    stranger = await Registry(tmp_path, store).start()
    for _, envelope in chain(OTHER):
        await stranger.put(envelope)
    for _ in range(2):
        caplog.clear()
        registry = await Registry(tmp_path, store, ROOT).start()
        assert "count for nothing: 3 kept" in caplog.text
        assert [one.kind for one in await store.list_events("keyring", 0, 2)] == ["keyring.set_aside", "keyring.put"]
    assert (registry.told, await registry.keyrings.list(0)) == ([0], [])
    await refused(registry.keyrings.newest(), Reason.KEY_UNKNOWN)
    await refused(registry.put(chain(OTHER)[0][1]), Reason.SIGNATURE_INVALID)
    rings = chain(ROOT)
    for _, envelope in rings[:2]:
        await registry.put(envelope)
    assert await registry.keyrings.newest() == rings[1][0]
    assert registry.told == [0, 1, 2]
    assert await registry.keyrings.list(0) == [envelope for _, envelope in rings[:2]]
    events = [one.kind for one in await store.list_events("keyring", 0, 3)]
    assert events == ["keyring.put", "keyring.put", "keyring.removed"]


async def test_a_start_with_the_wrong_root_loses_no_keyring(tmp_path: Path) -> None:
    store = Store()
    rings = chain(ROOT)
    registry = await Registry(tmp_path, store, ROOT).start()
    for _, envelope in rings:
        await registry.put(envelope)
    wrong = await Registry(tmp_path, store, OTHER).start()
    await refused(wrong.put(rings[0][1]), Reason.SIGNATURE_INVALID)
    again = await Registry(tmp_path, store, ROOT).start()
    assert await again.keyrings.newest() == rings[-1][0]


async def test_without_a_trust_root_nobody_but_the_roots_of_the_first_keyring_makes_the_next(tmp_path: Path) -> None:
    registry = await Registry(tmp_path, Store()).start()
    rings = chain(ROOT)
    await refused(registry.put(sign_keyring(rings[0][0], [OTHER])), Reason.SIGNATURE_INVALID)
    await registry.put(rings[0][1])
    await refused(registry.put(sign_keyring(rings[1][0], [OTHER])), Reason.SIGNATURE_INVALID)
    await registry.put(rings[1][1])
    assert registry.told == [0, 1, 2]
    with pytest.raises(MeshError, match="SPLITMESH_TRUST_ROOT") as error:
        await registry.put(chain(OTHER)[0][1])
    assert error.value.reason is Reason.KEYRING_STALE
    assert await registry.put(rings[0][1]) == 1


async def test_a_registry_that_lost_its_keyrings_takes_them_again_from_the_first_of_its_roots_on(
    tmp_path: Path,
) -> None:
    rings = chain(ROOT)
    rotated = with_roots(rings[-1][0], [OTHER.public], 1)
    registry = await Registry(tmp_path, Store(), OTHER).start()
    await refused(registry.put(rings[0][1]), Reason.SIGNATURE_INVALID)
    assert await registry.put(sign_keyring(rotated, [ROOT, OTHER])) == 4
    after = with_key(rotated, TrustedKey(SigningKey.generate().public, "carol"))
    assert await registry.put(sign_keyring(after, [OTHER])) == 5
    assert await registry.keyrings.newest() == after
    assert len(await registry.keyrings.list(4)) == 1
