"""A site's folder of pictures: durable, checked, bounded, shared by processes, and whole whatever is killed when."""

from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from splitmesh.datasets.folder import FolderLimits, PictureFolder, Usage
from splitmesh.datasets.freeze import freeze_items
from splitmesh.datasets.item import item_of
from splitmesh.datasets.manifest import Dataset
from splitmesh.errors import MeshError, Reason
from tests.unit.dataset_items import digest_of, encoded, scene

ROOMY = FolderLimits(min_free_bytes=0)
PICTURES = [encoded(scene(n)) for n in range(6)]
FAR = 4e9
"""A moment after everything."""


def version(*pictures: bytes) -> Dataset:
    items = [item_of(data, label="good", group=str(n)) for n, data in enumerate(pictures)]
    return freeze_items(items, seed=1, shares={"train": 1})


@pytest.fixture
def folder(tmp_path: Path) -> PictureFolder:
    return PictureFolder(tmp_path / "site", ROOMY)


def path_of(tmp_path: Path, digest: str) -> Path:
    return tmp_path / "site" / "pictures" / digest[:2] / digest[2:4] / digest


def test_a_picture_is_kept_once_and_read_back_by_its_digest(folder: PictureFolder, tmp_path: Path) -> None:
    assert not folder.has(digest_of(PICTURES[0]))
    assert folder.usage() == Usage(0, 0)
    assert folder.manifests() == []
    assert not (tmp_path / "site").exists(), "asking makes nothing"
    digests = [folder.add(data) for data in (*PICTURES, PICTURES[0])]
    assert digests == [digest_of(data) for data in (*PICTURES, PICTURES[0])]
    assert [folder.read(digest) for digest in digests[:6]] == PICTURES
    unknown = digest_of(b"unknown")
    assert folder.missing([unknown, digests[0], unknown, digest_of(b"other")]) == [unknown, digest_of(b"other")]
    assert folder.usage() == Usage(6, sum(map(len, PICTURES)))


def test_what_is_damaged_is_told_when_it_is_read_and_mended_when_it_is_added_again(
    folder: PictureFolder, tmp_path: Path
) -> None:
    digest = folder.add(PICTURES[0])
    for damage in (PICTURES[0][:-1] + b"x", PICTURES[0][:50], PICTURES[0] + b"more"):
        path_of(tmp_path, digest).write_bytes(damage)
        with pytest.raises(MeshError) as error:
            folder.read(digest)
        assert error.value.reason is Reason.DIGEST_MISMATCH
        assert digest in error.value.message
        folder.add(PICTURES[0])
        assert folder.read(digest) == PICTURES[0]
    path_of(tmp_path, digest).unlink()
    with pytest.raises(MeshError) as error:
        folder.read(digest)
    assert error.value.reason is Reason.ARTIFACT_NOT_FOUND


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "\n"])
def test_a_name_that_is_no_digest_leads_nowhere(folder: PictureFolder, name: str) -> None:
    for ask in (folder.read, folder.has, folder.renew, folder.manifest, folder.kept_at, folder.drop_manifest):
        with pytest.raises(MeshError) as error:
            ask(name)
        assert error.value.reason is Reason.FIELD_INVALID


@pytest.mark.parametrize(
    ("data", "limits", "reason"),
    [
        (b"no picture", ROOMY, Reason.IMAGE_UNDECODABLE),
        (encoded(scene(1), "GIF"), ROOMY, Reason.IMAGE_UNDECODABLE),
        (encoded(scene(1), "JPEG")[:-30], ROOMY, Reason.IMAGE_UNDECODABLE),
        (PICTURES[0], FolderLimits(min_free_bytes=0, max_pixels=1000), Reason.IMAGE_TOO_LARGE),
        (PICTURES[0], FolderLimits(min_free_bytes=0, max_picture_bytes=100), Reason.FRAME_TOO_LARGE),
        (PICTURES[0], FolderLimits(min_free_bytes=0, max_bytes=len(PICTURES[0]) - 1), Reason.STORAGE_FULL),
        (PICTURES[0], FolderLimits(min_free_bytes=0, max_pictures=0), Reason.STORAGE_FULL),
        (PICTURES[0], FolderLimits(min_free_bytes=1 << 60), Reason.STORAGE_FULL),
    ],
)
def test_what_may_not_be_kept_is_refused_and_leaves_nothing(
    tmp_path: Path, data: bytes, limits: FolderLimits, reason: Reason
) -> None:
    folder = PictureFolder(tmp_path / "site", limits)
    with pytest.raises(MeshError) as error:
        folder.add(data)
    assert error.value.reason is reason
    assert not folder.has(digest_of(data))
    assert folder.usage() == Usage(0, 0)


def test_the_quota_counts_what_other_processes_added_and_what_is_left(tmp_path: Path) -> None:
    limits = FolderLimits(min_free_bytes=0, max_pictures=2)
    one, other = PictureFolder(tmp_path, limits), PictureFolder(tmp_path, limits)
    one.add(PICTURES[0])
    other.add(PICTURES[1])
    with pytest.raises(MeshError, match="at most 2"):
        one.add(PICTURES[2])
    one.add(PICTURES[0])
    assert other.remove_unused(FAR).pictures == 2
    one.add(PICTURES[2])
    assert one.usage() == Usage(1, len(PICTURES[2]))


def test_a_disk_that_fills_in_the_middle_is_an_error_and_nothing_is_half_there(
    folder: PictureFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.add(PICTURES[0])

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("splitmesh.datasets.contents.os.fsync", full)
        with pytest.raises(MeshError) as error:
            folder.add(PICTURES[1])
    assert error.value.reason is Reason.STORAGE_FULL
    assert not folder.has(digest_of(PICTURES[1]))
    assert list((tmp_path / "site" / "pictures" / "incoming").iterdir()) == []
    folder.add(PICTURES[1])
    assert folder.read(digest_of(PICTURES[1])) == PICTURES[1]


def test_manifests_are_kept_by_digest_checked_and_dropped(folder: PictureFolder, tmp_path: Path) -> None:
    dataset = version(*PICTURES[:2])
    digest = folder.keep_manifest(dataset)
    assert digest == dataset.id == folder.keep_manifest(dataset.to_json())
    assert folder.manifests() == [digest]
    assert folder.manifest(digest) == dataset
    with pytest.raises(MeshError, match="manifest"):
        folder.keep_manifest(b"{}")
    path = tmp_path / "site" / "manifests" / digest[:2] / digest[2:4] / digest
    path.write_bytes(path.read_bytes().replace(b"good", b"gooo"))
    with pytest.raises(MeshError) as error:
        folder.manifest(digest)
    assert error.value.reason is Reason.DIGEST_MISMATCH
    assert folder.drop_manifest(digest)
    assert not folder.drop_manifest(digest)
    assert folder.manifests() == []


@pytest.mark.parametrize("torn", [b"", b'{"pict', b"[]", b'{"pictures": "x"}', b"\0" * 30])
def test_what_was_counted_is_counted_anew_when_a_power_cut_tore_it(
    folder: PictureFolder, tmp_path: Path, torn: bytes
) -> None:
    folder.add(PICTURES[0])
    folder.keep_manifest(version(PICTURES[0]))
    before = folder.usage()
    (tmp_path / "site" / "lock").write_bytes(torn)
    assert folder.usage() == before
    assert before.size_bytes == len(PICTURES[0]) + len(version(PICTURES[0]).to_json())


def test_a_writer_waits_for_another_process_but_not_for_ever(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    PictureFolder(folder, ROOMY).add(PICTURES[0])
    at = [0.0]

    def sleep(seconds: float) -> None:
        at[0] += seconds
        if freed and at[0] > 1:
            fcntl.flock(holder, fcntl.LOCK_UN)

    waiting = PictureFolder(folder, ROOMY, monotonic=lambda: at[0], sleep=sleep)
    with (folder / "lock").open("rb") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        freed = False
        with pytest.raises(MeshError) as error:
            waiting.add(PICTURES[1])
        assert error.value.reason is Reason.SERVICE_UNAVAILABLE
        assert at[0] == pytest.approx(ROOMY.lock_wait_s, abs=0.1)
        assert waiting.read(digest_of(PICTURES[0])) == PICTURES[0], "reading waits for nobody"
        at[0], freed = 0.0, True
        assert waiting.add(PICTURES[1]) == digest_of(PICTURES[1])


def test_threads_may_add_the_same_and_other_pictures_at_once(folder: PictureFolder) -> None:
    with ThreadPoolExecutor(8) as pool:
        digests = list(pool.map(folder.add, PICTURES * 6))
    assert set(digests) == {digest_of(data) for data in PICTURES}
    assert folder.usage() == Usage(6, sum(map(len, PICTURES)))


CHILD = """
import os, signal, sys
from pathlib import Path
from splitmesh.datasets.folder import FolderLimits, PictureFolder

step, at, folder = sys.argv[1], int(sys.argv[2]), PictureFolder(Path(sys.argv[3]), FolderLimits(min_free_bytes=0))
real = getattr(os, step)
calls = 0

def dies(*arguments, **named):
    global calls
    calls += 1
    if calls > at:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **named)

data = sys.stdin.buffer.read()
setattr(os, step, dies)
folder.add(data)
print("kept")
"""


@pytest.mark.parametrize(
    ("step", "at"), [("fsync", 0), ("fsync", 2), ("fsync", 3), ("replace", 0), ("write", 0), ("mkdir", 1)]
)
def test_a_process_that_is_killed_while_it_adds_leaves_all_or_nothing(tmp_path: Path, step: str, at: int) -> None:
    folder = PictureFolder(tmp_path / "site", ROOMY)
    folder.add(PICTURES[0])
    child = subprocess.run(
        [sys.executable, "-c", CHILD, step, str(at), tmp_path / "site"],
        input=PICTURES[1],
        stdout=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    assert (child.returncode, child.stdout) == (-9, b""), "it must be killed before it says that the picture is kept"
    digest = digest_of(PICTURES[1])
    there = [data for data in PICTURES[:2] if folder.has(digest_of(data))]
    assert [folder.read(digest_of(data)) for data in there] == there
    assert folder.usage().size_bytes >= sum(map(len, there)), "a quota must never count too little"
    assert folder.remove_unused(0) == Usage(0, 0)
    assert list((tmp_path / "site" / "pictures" / "incoming").iterdir()) == []
    assert folder.usage() == Usage(len(there), sum(map(len, there)))
    folder.add(PICTURES[1])
    assert folder.read(digest) == PICTURES[1]
    assert folder.usage() == Usage(2, len(PICTURES[0]) + len(PICTURES[1]))
