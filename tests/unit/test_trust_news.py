"""Which keyring counts: the newest one that a service can know, with the cable cut and a registry that lies too."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from splitmesh.client.trust import Trust
from splitmesh.client.trust_news import TrustNews
from splitmesh.errors import MeshError, Reason
from splitmesh.trust.keyring import sign_keyring
from splitmesh.trust.keys import SigningKey
from splitmesh.trust.ring_changes import with_key
from splitmesh.trust.trusted_key import TrustedKey
from tests.support.trusting import LAB, ONE, PRESS, THREE, TWO, Clock, Registry, refused, trust, version


@pytest.fixture(autouse=True)
def no_pause_between_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("splitmesh.client.keyrings.RETRY_S", 1e-9)


async def test_with_the_cable_cut_the_keyring_on_disk_counts_after_a_restart(tmp_path: Path) -> None:
    await trust(tmp_path, Registry(ONE, TWO)).verify(version())
    cut = Registry()
    cut.error = MeshError(Reason.SERVICE_UNAVAILABLE, "cut")
    again = trust(tmp_path, cut)
    assert again.keyring_version == 2
    await again.verify(version(LAB))
    await trust(tmp_path).verify(version(LAB))  # and without a registry at all


async def test_without_any_keyring_nothing_is_used_and_the_reason_is_told(tmp_path: Path) -> None:
    cut = Registry()
    cut.error = MeshError(Reason.SERVICE_UNAVAILABLE, "the cable is cut")
    with pytest.raises(MeshError, match="the cable is cut") as caught:
        await trust(tmp_path, cut).verify(version())
    assert caught.value.reason is Reason.KEY_UNKNOWN


async def test_a_registry_that_withholds_newer_keyrings_takes_nobody_back(tmp_path: Path) -> None:
    await trust(tmp_path, Registry(ONE, TWO, THREE)).refresh()
    for less in (Registry(), Registry(ONE), Registry(ONE, TWO)):
        made = trust(tmp_path, less)
        await made.refresh()
        assert made.keyring_version == 3
        assert await refused(made, version(PRESS)) is Reason.KEY_REVOKED


async def test_keyrings_that_come_in_several_answers_are_followed_to_the_newest_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("splitmesh.client.keyrings.FULL_BYTES", 1)
    whole = Registry(ONE, TWO, THREE)

    class OneByOne:
        async def keyrings(self, after: int = 0) -> Sequence[bytes]:
            return (await whole.keyrings(after))[:1]

    made = trust(tmp_path)
    await made.refresh(OneByOne())
    assert made.keyring_version == trust(tmp_path).keyring_version == 3


async def test_a_registry_that_was_set_back_and_went_on_from_there_loses_no_revocation(tmp_path: Path) -> None:
    made = trust(tmp_path, Registry(ONE, TWO, THREE))
    await made.refresh()
    lost = with_key(TWO, TrustedKey(SigningKey.generate().public, "new"))
    made.attach(Registry(ONE, TWO, lost, with_key(lost, TrustedKey(SigningKey.generate().public, "newer"))))
    with pytest.raises(MeshError, match="set the registry back") as caught:
        await made.refresh()
    assert caught.value.reason is Reason.KEYRING_STALE
    assert await refused(made, version(PRESS)) is Reason.KEY_REVOKED


async def test_a_forged_keyring_changes_nothing(tmp_path: Path) -> None:
    made = trust(tmp_path, Registry(ONE))
    await made.refresh()

    class Forger:
        async def keyrings(self, after: int = 0) -> Sequence[bytes]:
            return [sign_keyring(with_key(ONE, TrustedKey(LAB.public, "lab")), [LAB])]

    with pytest.raises(MeshError) as caught:
        await made.refresh(Forger())
    assert caught.value.reason is Reason.SIGNATURE_INVALID
    assert made.keyring_version == trust(tmp_path).keyring_version == 1


async def test_keyrings_of_other_roots_are_refused(tmp_path: Path) -> None:
    other = Trust([LAB.public], tmp_path)
    with pytest.raises(MeshError, match="pinned roots") as caught:
        await other.refresh(Registry(ONE))
    assert caught.value.reason is Reason.SIGNATURE_INVALID


async def test_a_damaged_or_cut_off_file_on_disk_leaves_what_came_before(tmp_path: Path) -> None:
    await trust(tmp_path, Registry(ONE, TWO, THREE)).refresh()
    newest = max(tmp_path.rglob("*.json"))
    newest.write_bytes(newest.read_bytes()[:100])
    again = trust(tmp_path, Registry(ONE, TWO, THREE))
    assert again.keyring.version == 2
    await again.refresh()
    assert again.keyring.version == trust(tmp_path).keyring.version == 3


async def test_a_full_disk_stops_no_line(tmp_path: Path) -> None:
    folder = tmp_path / "no folder"
    folder.write_text("a file is in the way")
    made = trust(folder, Registry(ONE))
    await made.verify(version())
    assert made.keyring_version == 1


async def test_a_key_trusted_since_is_asked_for_when_it_is_met(tmp_path: Path) -> None:
    registry, clock = Registry(ONE), Clock()
    made = trust(tmp_path, registry, clock=clock)
    await made.verify(version())
    registry.rings.append(TWO)
    await made.verify(version(LAB, 2))
    assert registry.asked == [0, 1]


async def test_a_revocation_heard_of_counts_before_the_next_version_is_used(tmp_path: Path) -> None:
    registry, clock = Registry(ONE, TWO), Clock()
    made = trust(tmp_path, registry, clock=clock)
    await made.verify(version())
    registry.rings.append(THREE)
    clock.now_s += 5
    made.heard(3)
    assert await refused(made, version(PRESS, 2)) is Reason.KEY_REVOKED
    made.heard(3)
    made.heard(2)
    await asyncio.sleep(0)
    assert registry.asked == [0, 2]  # once


async def test_news_is_asked_for_before_a_version_is_used_and_not_again_at_the_same_time(tmp_path: Path) -> None:
    registry, clock = Registry(ONE), Clock()
    made = trust(tmp_path, registry, clock=clock)
    for _ in range(3):
        await made.verify(version())
    assert registry.asked == [0]
    clock.now_s += 2
    registry.rings += [TWO, THREE]
    assert await refused(made, version(PRESS, 2)) is Reason.KEY_REVOKED
    assert registry.asked == [0, 1]


async def test_who_only_asks_for_the_version_of_the_keyring_hears_news_as_well(tmp_path: Path) -> None:
    registry, clock = Registry(ONE), Clock()
    made = trust(tmp_path, registry, clock=clock)
    await made.verify(version())
    registry.rings.append(TWO)
    clock.now_s += 61
    assert made.keyring_version == 1  # which makes it ask
    async with asyncio.timeout(10):
        await registry.told.wait()
    await made.refresh()  # waits for its turn
    assert made.keyring_version == 2
    assert registry.asked == [0, 1, 2]


async def test_a_registry_that_does_not_answer_holds_a_version_up_for_a_moment_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await trust(tmp_path, Registry(ONE)).refresh()
    monkeypatch.setattr("splitmesh.client.keyrings.WAIT_S", 0.01)
    hole = Registry(ONE, TWO)
    hole.cut.clear()
    made = trust(tmp_path, hole)
    await made.verify(version())
    hole.cut.set()
    await made.refresh()
    assert made.keyring_version == 2


async def test_a_registry_that_is_away_is_asked_once_a_minute(tmp_path: Path) -> None:
    await trust(tmp_path, Registry(ONE)).refresh()
    away, clock = Registry(ONE, TWO), Clock()
    away.error = MeshError(Reason.SERVICE_UNAVAILABLE, "away")
    made = trust(tmp_path, away, clock=clock)
    for _ in range(3):
        await made.verify(version())
        clock.now_s += 20
    assert away.asked == [1]
    away.error = None
    await made.verify(version())
    assert (away.asked, made.keyring.version) == ([1, 1], 2)


async def test_a_node_that_loads_nothing_hears_of_a_revocation_too(tmp_path: Path) -> None:
    registry = Registry(ONE, TWO)
    made = trust(tmp_path, registry)
    await made.verify(version())
    registry.rings.append(THREE)
    news = TrustNews(made, every_s=0)
    await news.start()
    async with asyncio.timeout(10):
        await registry.told.wait()
    await news.stop()
    await made.refresh()  # waits for its turn
    assert made.withdrawn("solder", 1) is Reason.KEY_REVOKED
    idle = TrustNews(None)
    await idle.start()
    await idle.stop()


async def test_an_outage_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    await trust(tmp_path, Registry(ONE)).refresh()
    away = Registry(ONE)
    made = trust(tmp_path, away)
    for reason in ("away", "away", "forged", "", "away"):
        away.error = MeshError(Reason.SERVICE_UNAVAILABLE, reason) if reason else None
        await made.ask()
    assert [record.message.rpartition(": ")[2] for record in caplog.records] == ["away", "forged", "away"]


async def test_the_folders_of_the_first_keyring_are_on_disk_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr("splitmesh.durable.sync_folder", synced.append)
    await trust(tmp_path / "node" / "trust", Registry(ONE)).refresh()
    (kept,) = tmp_path.rglob("*.json")
    assert {tmp_path, tmp_path / "node", tmp_path / "node" / "trust", kept.parent} <= set(synced)
