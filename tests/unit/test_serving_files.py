"""What a head was told to serve, on its disk: whole, damaged, late, or on a disk that takes nothing."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from edge.head.config import HeadSettings
from edge.head.serving import assignments, host_policy
from edge.head.serving.assignments import AssignmentFiles, Held, checked
from edge.head.serving.host_policy import HostPolicy, HostPolicyHolder, HostShare
from edge.head.serving.states import MOST_WATCHERS, States
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.streams import Drain

MODEL = "joints"


def held(model: str = MODEL, generation: int = 1, version: int = 2) -> Held:
    order = checked(
        model=model,
        version=version,
        generation=generation,
        require_tail=True,
        trial={"trial_id": "t", "candidate": version + 1, "answer_share": 0.25, "reference": "LABELS"},
    )
    return Held(model=model, generation=generation, assignment=order, active=1, previous=4)


def full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def test_what_was_written_is_read_again_of_every_model(tmp_path: Path) -> None:
    files = AssignmentFiles(tmp_path)
    assert files.read() == {}
    written = {one.model: one for one in (held(), held("helmets", 7))}
    for one in written.values():
        files.write(one)
    assert AssignmentFiles(tmp_path).read() == written


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"model": "other", "generation": 1, "assignment": null}',
        b" " * (assignments.MAX_BYTES + 1),
    ],
    ids=["empty", "cut", "binary", "another model's", "huge"],
)
def test_a_damaged_file_is_told_of_and_the_others_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    files = AssignmentFiles(tmp_path)
    files.write(held("helmets"))
    (tmp_path / f"{MODEL}.json").write_bytes(content)
    with caplog.at_level(logging.ERROR):
        assert list(files.read()) == ["helmets"]
    assert "cannot be read" in caplog.text


def test_a_full_disk_is_an_error_and_what_was_there_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = AssignmentFiles(tmp_path)
    files.write(held())
    monkeypatch.setattr(assignments, "write_file", full)
    with pytest.raises(MeshError) as caught:
        files.write(held(generation=2))
    assert caught.value.reason is Reason.STORAGE_FULL
    assert files.read()[MODEL].generation == 1


def test_generations_of_models_that_are_gone_are_bounded_and_no_assignment_goes_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assignments, "MAX_WITHDRAWN", 3)
    files = AssignmentFiles(tmp_path)
    files.write(held())
    os.utime(tmp_path / f"{MODEL}.json", ns=(0, 0))
    for number in range(5):
        files.write(Held(model=f"gone-{number}", generation=1, assignment=None))
        os.utime(tmp_path / f"gone-{number}.json", ns=(number, number))
    files.write(Held(model="gone-5", generation=1, assignment=None))
    assert sorted(files.read()) == ["gone-3", "gone-4", "gone-5", MODEL]


def holder(folder: Path) -> HostPolicyHolder:
    return HostPolicyHolder(folder / "policy.json", lambda model: 3)


def policy(generation: int, priority: int = 8) -> HostPolicy:
    return HostPolicy(generation=generation, shares={MODEL: HostShare(priority=priority)}, memory_bytes=5)


async def test_a_host_policy_is_told_to_everybody_and_survives_a_restart(tmp_path: Path) -> None:
    one, told = holder(tmp_path), list[int]()
    one.subscribe(lambda now: told.append(now.generation))
    assert one.priority_of(MODEL) == 3
    assert await one.set(policy(4)) == 4
    assert await one.set(policy(3, priority=1)) == 4
    assert (one.priority_of(MODEL), one.priority_of("helmets"), told) == (8, 3, [0, 4])
    other = holder(tmp_path)
    await other.start()
    assert other.policy == one.policy


async def test_a_policy_that_cannot_be_kept_is_not_in_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = holder(tmp_path)
    monkeypatch.setattr(host_policy, "write_file", full)
    with pytest.raises(MeshError) as caught:
        await one.set(policy(1))
    assert (caught.value.reason, one.policy.generation) == (Reason.STORAGE_FULL, 0)


async def test_a_damaged_policy_leaves_the_defaults_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "policy.json").write_text('{"generation": -1}')
    one = holder(tmp_path)
    with caplog.at_level(logging.ERROR):
        await one.start()
    assert one.policy == HostPolicy()
    assert "cannot be read" in caplog.text


async def test_who_watches_gets_all_then_only_what_changed_however_often() -> None:
    names, drain = ["a", "b"], Drain()
    states = States(lambda: names, drain, every_s=0.01)
    watch = states.watch()
    assert (await anext(watch)).changed == ("a", "b")
    for _ in range(1000):
        states.changed("b")
    news = await anext(watch)
    assert (news.changed, news.gone) == (("b",), ())
    names.remove("b")
    states.gone("b")
    states.changed("b")  # its last version is unloaded later
    news = await anext(watch)
    assert (news.changed, news.gone) == ((), ("b",))
    names.append("b")
    states.changed("b")
    news = await anext(watch)
    assert (news.changed, news.gone) == (("b",), ())
    await watch.aclose()


async def test_too_many_watchers_are_refused_and_a_place_is_free_again_when_one_leaves() -> None:
    states = States(list, Drain())
    watchers = [states.watch() for _ in range(MOST_WATCHERS)]
    for watch in watchers:
        await anext(watch)
    with pytest.raises(MeshError) as caught:
        await anext(states.watch())
    assert (caught.value.reason, caught.value.retry_after_s is not None) == (Reason.QUEUE_FULL, True)
    await watchers[0].aclose()
    await anext(states.watch())
    for watch in watchers[1:]:
        await watch.aclose()


async def test_a_watch_ends_when_the_head_stops() -> None:
    drain = Drain()
    states = States(list, drain, every_s=0.0)
    watch = states.watch()
    await anext(watch)
    following: asyncio.Future[Any] = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0)
    await drain.drain(1.0)
    with pytest.raises(MeshError) as caught:
        await following
    assert caught.value.reason is Reason.NOT_READY


def test_a_head_may_name_no_model_and_be_assigned_some() -> None:
    assert HeadSettings(models="").model_names() == []
