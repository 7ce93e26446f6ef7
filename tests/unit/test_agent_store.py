"""What an agent has on disk: after a kill, on a full disk, in a damaged file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.agent import store as store_module
from edge.agent.store import FILE, AgentStore
from splitmesh.api.fleet.v1 import fleet_pb2 as pb
from splitmesh.errors import MeshError, Reason
from tests.support.fake_fleet import deploy_task

ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[AgentStore]:
    made = AgentStore(tmp_path)
    made.open()
    yield made
    made.close()


def again(store: AgentStore, folder: Path) -> AgentStore:
    store.close()
    made = AgentStore(folder)
    made.open()
    return made


def done(task_id: str, attempt: int = 1) -> pb.TaskUpdate:
    return pb.TaskUpdate(task_id=task_id, attempt=attempt, state=pb.TASK_STATE_DONE, result={"heads": "1"})


def test_tasks_are_there_after_a_restart_in_the_order_they_came(store: AgentStore, tmp_path: Path) -> None:
    for n in range(3):
        store.begin(deploy_task(f"t-{n}"))
    store.end(done("t-1"))
    store.acknowledge("t-1", 1)
    store.end(done("t-2"))
    store = again(store, tmp_path)
    assert [(one.task.id, one.ended, one.acknowledged) for one in store.tasks()] == [
        ("t-0", None, False),
        ("t-1", done("t-1"), True),
        ("t-2", done("t-2"), False),
    ]
    store.close()


def test_a_later_attempt_stands_in_the_place_of_an_earlier_one_whose_end_changes_nothing(store: AgentStore) -> None:
    store.begin(deploy_task("t"))
    store.begin(deploy_task("t", attempt=2))
    store.end(done("t", attempt=1))
    store.acknowledge("t", 1)
    (one,) = store.tasks()
    assert (one.task.attempt, one.ended, one.acknowledged) == (2, None, False)


def test_of_the_acknowledged_only_the_newest_are_kept(store: AgentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MAX_ACKNOWLEDGED", 2)
    forgotten = []
    store.begin(deploy_task("open"))
    for n in range(4):
        store.begin(deploy_task(f"t-{n}"))
        store.end(done(f"t-{n}"))
        forgotten += store.acknowledge(f"t-{n}", 1)
    assert forgotten == ["t-0", "t-1"]
    assert [one.task.id for one in store.tasks()] == ["open", "t-2", "t-3"]


def test_values_are_kept_by_name_and_the_newest_counts(store: AgentStore, tmp_path: Path) -> None:
    store.keep("policy", b"1")
    store.keep("policy", b"2")
    store.keep("assignment/parts", b"3")
    store = again(store, tmp_path)
    assert store.kept() == {"policy": b"2", "assignment/parts": b"3"}
    store.close()


def test_a_full_disk_is_said_and_what_was_there_stays(store: AgentStore) -> None:
    store.begin(deploy_task("t"))
    database = store._database
    assert database is not None
    (pages,) = database.execute("PRAGMA page_count").fetchone()
    database.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(MeshError) as caught:
        store.begin(deploy_task("large", model="m" * 100_000))
    assert caught.value.reason is Reason.STORAGE_FULL
    assert [one.task.id for one in store.tasks()] == ["t"]
    database.execute(f"PRAGMA max_page_count = {pages + 100}")
    store.begin(deploy_task("large", model="m" * 100_000))
    assert [one.task.id for one in store.tasks()] == ["t", "large"]


@pytest.mark.parametrize("damage", ["not a database", "torn", "empty"])
def test_a_damaged_file_is_put_aside_and_a_new_one_begun(store: AgentStore, tmp_path: Path, damage: str) -> None:
    for n in range(200):
        store.begin(deploy_task(f"t-{n}", model="m" * 200))
    store.close()
    path = tmp_path / FILE
    whole = path.read_bytes()
    if damage == "not a database":
        path.write_bytes(b"what is this" * 1000)
    elif damage == "torn":
        path.write_bytes(whole[:8192] + os.urandom(len(whole) - 8192))
    else:
        path.write_bytes(b"")
    store = AgentStore(tmp_path)
    store.open()
    assert store.tasks() == []
    store.begin(deploy_task("new"))
    assert path.with_name(f"{FILE}.damaged").exists() == (damage != "empty")
    store.close()


def test_a_task_that_cannot_be_read_costs_only_itself(store: AgentStore) -> None:
    store.begin(deploy_task("good"))
    store.begin(deploy_task("bad"))
    assert store._database is not None
    store._database.execute("UPDATE tasks SET task = ? WHERE id = 'bad'", (b"\xff\xff\xff",))
    assert [one.task.id for one in store.tasks()] == ["good"]


def test_a_store_of_a_later_release_is_left_as_it_is(store: AgentStore, tmp_path: Path) -> None:
    assert store._database is not None
    store._database.execute("PRAGMA user_version = 99")
    store.close()
    with pytest.raises(MeshError, match="schema 99"):
        AgentStore(tmp_path).open()
    assert not (tmp_path / f"{FILE}.damaged").exists()


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    with pytest.raises(MeshError) as caught:
        AgentStore(tmp_path).tasks()
    assert caught.value.reason is Reason.NOT_READY


def test_what_a_method_has_returned_from_is_there_after_a_kill(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from edge.agent.store import AgentStore
from tests.support.fake_fleet import deploy_task
store = AgentStore(Path(sys.argv[1]))
store.open()
n = 0
while True:
    store.begin(deploy_task(f"t-{n}"))
    print(n, flush=True)
    n += 1
"""
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    with child.stdout:
        written = [int(child.stdout.readline()) for _ in range(20)]
        child.send_signal(signal.SIGKILL)
        written += [int(line) for line in child.stdout]
    child.wait()
    store = AgentStore(tmp_path)
    store.open()
    there = {one.task.id for one in store.tasks()}
    store.close()
    assert {f"t-{n}" for n in written} <= there


def test_a_value_that_is_replaced_is_the_newest_and_others_go_with_it(store: AgentStore, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        store.keep(name, b"1")
    store.keep("a", b"2", ["b"])
    store = again(store, tmp_path)
    assert list(store.kept().items()) == [("c", b"1"), ("a", b"2")]
    store.close()
