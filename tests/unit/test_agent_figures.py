"""What an agent tells of its host beside tasks: settings, figures, spools, capabilities; and profiles at another node's pace."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from edge.agent.capabilities import HostCapabilities, capabilities_message
from edge.agent.config import AgentSettings
from edge.agent.runners.profile import Measured, made_of
from edge.agent.spooled import spooled
from edge.agent.vitals import Vitals
from splitmesh.api.fleet.v1 import fleet_pb2
from splitmesh.errors import MeshError, Reason
from splitmesh.model.profile_data import ProfileKey
from splitmesh.runtime.host import HostFacts
from splitmesh.runtime.timing import Timing
from splitmesh.spool.store import SpoolStore
from splitmesh.spool.values import Entry, Limits
from tests.unit.plan_profiles import Op, surveyed
from tests.unit.test_host import FACTS, lay

MEMINFO = "MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: 400 kB\n"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("labels", "hall"),
        ("labels", "=3"),
        ("labels", "hall=3,hall=4"),
        ("labels", "hall=" + "x" * 201),
        ("camera_groups", "left,ri ght"),
        ("heads", "head;1"),
        ("heads", ",".join(f"n{n}" for n in range(65))),
        ("line", "line 2"),
        ("max_tasks", 0),
    ],
)
def test_settings_that_cannot_be_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        AgentSettings(**{field: value})  # type: ignore[arg-type]


def test_settings_of_a_compose_file_that_say_nothing_are_not_set() -> None:
    settings = AgentSettings(sharing="", head_data_dir="", labels="", camera_groups=" a , b ")  # type: ignore[arg-type]
    assert (settings.sharing, settings.head_data_dir, settings.label_values()) == (None, None, {})
    assert settings.group_names() == ["a", "b"]


def test_the_processors_share_is_that_of_the_time_since_it_was_last_asked(tmp_path: Path) -> None:
    def stat(user: int, idle: int, iowait: int, guest: int = 0) -> dict[str, str]:
        return {"proc/stat": f"cpu {user} 0 0 {idle} {iowait} 0 0 0 {guest} 0\ncpu0 1 1 1\n", "proc/meminfo": MEMINFO}

    vitals = Vitals(tmp_path, lay(tmp_path, stat(1000, 9000, 0)))
    lay(tmp_path, stat(1030, 9060, 10, guest=500))
    beat = vitals.read()
    assert beat.cpu_share == pytest.approx(0.3)
    assert beat.memory_bytes == 600 * 1024
    assert beat.disk_free_bytes > 0
    assert vitals.read().cpu_share == 0.0


@pytest.mark.parametrize("files", [{}, {"proc/stat": "cpu x\n", "proc/meminfo": "MemTotal\n"}])
def test_figures_that_are_not_there_are_0(tmp_path: Path, files: dict[str, str]) -> None:
    beat = Vitals(tmp_path / "nowhere", lay(tmp_path, files)).read()
    assert (beat.cpu_share, beat.memory_bytes, beat.disk_free_bytes) == (0.0, 0, 0)


def test_what_waits_is_counted_over_all_spools_of_a_head_while_it_writes_them(tmp_path: Path) -> None:
    stores = []
    for folder in (tmp_path / "spool", tmp_path / "replica-1" / "spool"):
        store = SpoolStore(folder, Limits(max_body_bytes=10))
        store.open()
        store.note(
            [Entry("samples", "sample", b"1"), Entry("outcomes", "report", b"2"), Entry("samples", "x", b"9" * 11)]
        )
        stores.append(store)
    assert spooled(tmp_path) == (4, 2)
    stores[0].acknowledge(stores[0].take("samples", 10, 1000))
    assert spooled(tmp_path) == (3, 2)
    for store in stores:
        store.close()


def test_without_a_spool_or_with_one_that_is_none_nothing_is_counted(tmp_path: Path) -> None:
    assert spooled(None) == spooled(tmp_path) == (0, 0)
    lay(tmp_path, {"spool/spool.db": "what is this" * 100})
    assert spooled(tmp_path) == (0, 0)


def test_the_message_has_all_facts_of_a_host() -> None:
    message = capabilities_message(replace(FACTS, cpus=2.5), [fleet_pb2.TASK_KIND_DEPLOY])
    assert (message.cpu_model, message.cores, message.memory_bytes) == ("a processor", 2, 8 << 30)
    assert [(gpu.name, gpu.driver) for gpu in message.gpus] == [("a GPU", "550.1")]
    assert [(one.name, list(one.precisions)) for one in message.backends] == [("onnxruntime-cpu", ["fp32"])]
    assert message.fingerprint == replace(FACTS, cpus=2.5).fingerprint


async def looked(*looks: HostFacts | MeshError, every_s: float = 0.001) -> list[str]:
    """Fingerprints that were told while a host was looked at so often."""
    told: list[str] = []
    over = asyncio.Event()
    waiting = list(looks)

    def look() -> HostFacts:
        found = waiting.pop(0)
        if not waiting:
            waiting.append(found)
            loop.call_soon_threadsafe(over.set)
        if isinstance(found, MeshError):
            raise found
        return found

    async def changed() -> None:
        told.append((await capabilities.message(0.0)).fingerprint)

    loop = asyncio.get_running_loop()
    quickly: Callable[[], HostFacts] = lambda: replace(FACTS, backends=())  # noqa: E731
    capabilities = HostCapabilities([], every_s, changed, look=look, look_quickly=quickly)
    await capabilities.start()
    async with asyncio.timeout(10):
        await over.wait()
    await capabilities.stop()
    return told


async def test_a_host_is_told_again_when_it_has_changed_and_only_then() -> None:
    other = replace(FACTS, cpus=2.0)
    assert await looked(FACTS, FACTS, other, other, FACTS, FACTS) == [
        FACTS.fingerprint,
        other.fingerprint,
        FACTS.fingerprint,
    ]


async def test_a_look_that_fails_is_made_again() -> None:
    failed = MeshError(Reason.NOT_READY, "a driver crashed")
    assert await looked(failed, failed, FACTS, FACTS) == [FACTS.fingerprint]


async def test_a_host_whose_back_ends_take_too_long_to_look_at_is_told_without_them() -> None:
    async def changed() -> None:
        """Nobody listens."""

    capabilities = HostCapabilities([], 1.0, changed, look_quickly=lambda: replace(FACTS, backends=()))
    message = await capabilities.message(0.01)
    assert message.cpu_model == "a processor"
    assert not message.backends


OPS = [Op((-1,), 4.0, 2.0, 100), Op((0,), 3.0, 1.0, 50), Op((1,), 3.0, 1.0, 10)]
THERE = surveyed(OPS)
HERE = ProfileKey(node="mec-1", backend="CPUExecutionProvider", threads=2)


def timing(median_ms: float, p90_ms: float) -> Timing:
    return Timing(median_ms, p90_ms, 20, "CPUExecutionProvider", 2)


def test_cuts_of_another_node_are_taken_over_at_this_nodes_pace_and_are_not_measured_here() -> None:
    made = made_of(Measured(HERE, "here", timing(2 * THERE.whole_ms, 3 * THERE.whole_ms), 1000), THERE)
    assert (made.key, made.host, made.complete) == (HERE, "here", False)
    assert made.whole_ms == 2 * THERE.whole_ms
    for cut, there in zip(made.cuts, THERE.cuts, strict=True):
        assert (cut.head_ms, cut.tail_ms, cut.measured) == (2 * there.head_ms, 2 * there.tail_ms, False)
        assert cut.wire_bytes == there.wire_bytes
    for node, other in zip(made.nodes, THERE.nodes, strict=True):
        assert (node.head_ms, node.tail_ms) == (2 * other.head_ms, 2 * other.tail_ms)


def test_the_versions_own_cut_has_the_times_that_were_taken_here() -> None:
    own = THERE.cuts[0]
    measured = Measured(
        HERE, "here", timing(THERE.whole_ms, 9.0), 1000, frozenset(own.tensors), timing(1.5, 1.75), timing(0.5, 0.75)
    )
    made = made_of(measured, THERE)
    assert [cut.tensors for cut in made.cuts if cut.measured] == [own.tensors]
    cut = made.cuts[0]
    assert (cut.head_ms, cut.head_p90_ms, cut.tail_ms, cut.tail_p90_ms) == (1.5, 1.75, 0.5, 0.75)


def test_a_profile_of_this_node_keeps_what_was_measured_on_it() -> None:
    own = THERE.model_copy(update={"key": HERE})
    made = made_of(Measured(HERE, "here", timing(2 * own.whole_ms, 9.0), 1000), own)
    assert all(cut.measured for cut in made.cuts)
    assert made.complete == own.complete
