"""The children that read untrusted models: limited, ended, and never able to hurt the registry."""

from __future__ import annotations

import asyncio
import os
from contextlib import nullcontext
from pathlib import Path

import pytest

from services.registry.check import CheckLimits, ModelCheck
from splitmesh.errors import MeshError, Reason
from tests.integration.registry_world import ROOT, WAIT_S, relu_model

LIMITS = CheckLimits(check_memory_bytes=2**31, check_cpu_s=30, check_deadline_s=30.0, max_checks=1)
LIMITED = f"""import sys
sys.path.insert(0, {str(ROOT)!r})
from services.registry.check_model import limit
limit(int(sys.argv[2]), int(sys.argv[3]))
"""


def child(folder: Path, code: str) -> Path:
    script = folder / "child.py"
    script.write_text(code)
    return script


async def verdict(check: ModelCheck, path: Path) -> Reason | None:
    try:
        await check.check("model.onnx", "0" * 64, nullcontext(path))
    except MeshError as error:
        return error.reason
    return None


async def test_a_sound_model_passes_and_is_not_checked_again(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(relu_model())
    check = ModelCheck(LIMITS)
    assert await verdict(check, path) is None
    path.unlink()
    assert await verdict(check, path) is None


async def test_a_refused_model_is_checked_again(tmp_path: Path) -> None:
    path = tmp_path / "model"
    check = ModelCheck(LIMITS)
    for content, expected in ((b"junk", Reason.MODEL_CORRUPT), (relu_model(), None)):
        path.write_bytes(content)
        assert await verdict(check, path) is expected


async def test_a_model_that_needs_too_much_memory_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with path.open("wb") as file:
        file.truncate(500 * 1024 * 1024)
    limits = CheckLimits(check_memory_bytes=512 * 1024 * 1024, check_cpu_s=30, check_deadline_s=30.0, max_checks=1)
    assert await verdict(ModelCheck(limits), path) is Reason.MODEL_TOO_LARGE


@pytest.mark.parametrize(
    ("code", "cpu_s", "deadline_s"),
    [
        (LIMITED + "while True: pass", 1, 30.0),
        ("import threading; threading.Event().wait()", 30, 0.5),
        ("import os; os.abort()", 30, 30.0),
    ],
    ids=["spins", "hangs", "crashes"],
)
async def test_a_model_on_which_the_child_dies_is_too_large(
    tmp_path: Path, code: str, cpu_s: int, deadline_s: float
) -> None:
    limits = CheckLimits(check_memory_bytes=2**31, check_cpu_s=cpu_s, check_deadline_s=deadline_s, max_checks=1)
    assert await verdict(ModelCheck(limits, child=child(tmp_path, code)), tmp_path / "m") is Reason.MODEL_TOO_LARGE


async def test_a_child_that_fails_by_itself_is_our_fault_not_the_models(tmp_path: Path) -> None:
    check = ModelCheck(LIMITS, child=child(tmp_path, "raise SystemExit(3)"))
    assert await verdict(check, tmp_path / "m") is Reason.INTERNAL


async def test_a_child_can_write_no_file(tmp_path: Path) -> None:
    code = LIMITED + "open(sys.argv[1], 'w').write('x')"
    check = ModelCheck(LIMITS, child=child(tmp_path, code))
    assert await verdict(check, tmp_path / "m") is Reason.INTERNAL
    assert (tmp_path / "m").stat().st_size == 0


async def test_a_caller_that_hangs_up_takes_the_child_with_it(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    code = "import sys, threading; f = open(sys.argv[1], 'w'); f.write('up'); f.flush(); threading.Event().wait()"
    task = asyncio.create_task(verdict(ModelCheck(LIMITS, child=child(tmp_path, code)), pipe))
    async with asyncio.timeout(WAIT_S):
        reader = await asyncio.to_thread(pipe.open)
    async with asyncio.timeout(WAIT_S):
        assert await asyncio.to_thread(reader.read, 2) == "up"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    # The pipe ends when the last process that could write to it is gone.
    async with asyncio.timeout(WAIT_S):
        assert await asyncio.to_thread(reader.read) == ""
    reader.close()
