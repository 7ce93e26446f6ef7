"""kill -9 at every step of an upload, a batch and a removal: nothing is half visible, and what was acknowledged is there.

Every step: a process of its own is killed before each call that changes the disk or the bucket, and in the middle of each write.
What a power cut adds, lost writes that were not synced, no test of a process can show. The bucket is on moto's server.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import s3fs

from services.registry.content.staged import StagedStore
from tests.support.contents import Place, digest, write
from tests.support.killed_store import ACKNOWLEDGED, BATCH, FIRST, OWNER, SECOND, place
from tests.support.s3 import S3, serving_s3

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with serving_s3() as server:
        yield server


@pytest.fixture
def one_client(monkeypatch: pytest.MonkeyPatch, s3: S3) -> Iterator[dict[str, bool]]:
    """Options with which all stores of the test have the same client: to make one takes longer than to check a step."""
    kept: list[tuple[Any, Any]] = []
    close = s3fs.S3FileSystem.close_session
    monkeypatch.setattr(s3fs.S3FileSystem, "close_session", staticmethod(lambda *session: kept.append(session)))
    yield {"skip_instance_cache": False}
    for session in kept[:1]:
        close(*session)


@pytest.mark.timeout(300)  # some 70 processes
@pytest.mark.parametrize(("kind", "least_steps"), [("folder", 40), ("bucket", 12)])
async def test_whenever_it_is_killed_nothing_is_half_visible_and_the_next_process_goes_on(
    tmp_path: Path,
    s3: S3,
    one_client: dict[str, bool],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    least_steps: int,
) -> None:
    monkeypatch.setattr("moto.s3.models.S3_UPLOAD_PART_MIN_SIZE", 1000)
    bucket = s3.bucket()
    command = [sys.executable, "-m", "tests.support.killed_store", kind, str(tmp_path), json.dumps(asdict(bucket))]
    ended = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr
    steps = int(ended.stdout)
    assert steps >= least_steps
    seen = set()
    for step in range(1, steps + 2):
        at = place(kind, tmp_path / str(step), bucket, one_client)
        acknowledged = (at.folder / ACKNOWLEDGED).read_text().split()
        seen.update(acknowledged)
        _require_sound(at, acknowledged)
        async with at.store() as store:
            await store.claim(OWNER, adopt=False)  # a half written mark would be somebody else's
            await _require_going_on(store, acknowledged)
        assert at.whole() == {digest(data): data for data in [FIRST, SECOND, *BATCH]}
        assert at.left_over() == [ACKNOWLEDGED]
    assert seen == {"part", "first", "second", "batch", "removed"}


def _require_sound(at: Place, acknowledged: list[str]) -> None:
    """What lies there, before another process looks."""
    whole = at.whole()
    assert all(name == digest(data) for name, data in whole.items() if name != "probe")
    assert ("first" not in acknowledged) or digest(FIRST) in whole
    assert ("batch" not in acknowledged) or {digest(data) for data in BATCH} <= set(whole)
    if "removed" in acknowledged:
        assert digest(SECOND) not in whole


async def _require_going_on(store: StagedStore, acknowledged: list[str]) -> None:
    progress = await store.progress(digest(FIRST))
    if "part" in acknowledged:
        assert progress.offset >= 3000
    for data in (FIRST, SECOND):
        if not (await store.progress(digest(data))).complete:
            await write(store, data)
    await store.put([(digest(data), data) for data in BATCH])
