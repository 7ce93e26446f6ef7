"""A site's pictures are removed by one thing only: a collection that has read every manifest, while nobody takes pictures in."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from splitmesh.datasets.folder import FolderLimits, PictureFolder, Usage
from splitmesh.errors import MeshError, Reason
from tests.unit.dataset_items import digest_of, encoded, scene
from tests.unit.test_datasets_folder import version

FAR = 1e12
PICTURES = [encoded(scene(n)) for n in range(4)]


@pytest.fixture
def folder(tmp_path: Path) -> PictureFolder:
    return PictureFolder(tmp_path / "site", FolderLimits(min_free_bytes=0, lock_wait_s=0.0))


def path_of(root: Path, kind: str, digest: str) -> Path:
    return root / "site" / kind / digest[:2] / digest[2:4] / digest


def age(root: Path, kind: str, digest: str, at: float) -> None:
    os.utime(path_of(root, kind, digest), (at, at))


def refusal(work: Callable[[], Any]) -> Reason:
    with pytest.raises(MeshError) as error:
        work()
    return error.value.reason


def test_only_pictures_that_no_manifest_names_and_nobody_added_lately_are_removed(
    folder: PictureFolder, tmp_path: Path
) -> None:
    named, old, young = (folder.add(data) for data in PICTURES[:3])
    folder.keep_manifest(version(PICTURES[0]))
    for digest, at in ((named, 1000), (old, 1000), (young, 2000)):
        age(tmp_path, "pictures", digest, at)
    assert folder.remove_unused(2000) == Usage(1, len(PICTURES[1]))
    assert [folder.has(digest) for digest in (named, old, young)] == [True, False, True]
    assert folder.usage().pictures == 2


def test_what_is_added_again_or_renewed_is_young_again_and_only_what_is_whole_is_renewed(
    folder: PictureFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    added, renewed, damaged = (folder.add(data) for data in PICTURES[:3])
    path_of(tmp_path, "pictures", damaged).write_bytes(b"torn")
    for digest in (added, renewed, damaged):
        age(tmp_path, "pictures", digest, 1000)
    with monkeypatch.context() as patched:
        patched.setattr("splitmesh.datasets.folder.look", lambda *_, **__: pytest.fail("decoded twice"))
        folder.add(PICTURES[0])
    assert folder.renew(renewed)
    assert not folder.renew(damaged)
    assert not folder.renew(digest_of(b"not here"))
    assert folder.remove_unused(2000).pictures == 1
    assert [folder.has(digest) for digest in (added, renewed, damaged)] == [True, True, False]


@pytest.mark.parametrize("damage", [b"torn", b'{"schema_version":9}'])
def test_nothing_is_removed_while_a_manifest_is_damaged_and_it_can_be_mended_or_dropped_unread(
    folder: PictureFolder, tmp_path: Path, damage: bytes
) -> None:
    digest, other = folder.add(PICTURES[0]), folder.add(PICTURES[1])
    dataset = version(PICTURES[0])
    name = folder.keep_manifest(dataset)
    path_of(tmp_path, "manifests", name).write_bytes(damage)
    assert refusal(lambda: folder.remove_unused(FAR)) is Reason.DIGEST_MISMATCH
    folder.keep_manifest(dataset)
    assert folder.manifest(name) == dataset
    assert folder.remove_unused(FAR) == Usage(1, len(PICTURES[1]))
    assert [folder.has(digest), folder.has(other)] == [True, False]
    path_of(tmp_path, "manifests", name).write_bytes(damage)
    assert folder.drop_manifest(name)
    assert folder.remove_unused(FAR) == Usage(1, len(PICTURES[0]))
    assert folder.usage() == Usage(0, 0)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_nothing_is_removed_where_a_folder_of_manifests_cannot_be_read(
    folder: PictureFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: int
) -> None:
    digest = folder.add(PICTURES[0])
    name = folder.keep_manifest(version(PICTURES[0]))
    closed = (path_of(tmp_path, "manifests", name).parents)[2 - level]
    real = os.listdir

    def listdir(path: Path) -> list[str]:
        if path == closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    with monkeypatch.context() as patched:
        patched.setattr("splitmesh.datasets.contents.os.listdir", listdir)
        assert refusal(lambda: folder.remove_unused(FAR)) is Reason.SERVICE_UNAVAILABLE
        assert refusal(folder.manifests) is Reason.SERVICE_UNAVAILABLE
    assert folder.has(digest)
    assert folder.remove_unused(FAR) == Usage(0, 0)


@pytest.mark.parametrize("counted", [True, False])
def test_nothing_is_removed_where_the_folder_of_manifests_is_gone_and_nobody_makes_it_unasked(
    folder: PictureFolder, tmp_path: Path, counted: bool
) -> None:
    digest = folder.add(PICTURES[0])
    folder.keep_manifest(version(PICTURES[0]))
    manifests = tmp_path / "site" / "manifests"
    shutil.rmtree(manifests)
    if not counted:
        (tmp_path / "site" / "lock").unlink()
        assert refusal(lambda: folder.add(PICTURES[1])) is Reason.SERVICE_UNAVAILABLE
    for work in (lambda: folder.remove_unused(FAR), lambda: folder.keep_manifest(version(PICTURES[0]))):
        assert refusal(work) is Reason.SERVICE_UNAVAILABLE
        assert folder.has(digest)
        assert not manifests.exists()
    manifests.mkdir()  # by somebody else, such as a mount point without its disk
    assert refusal(lambda: folder.remove_unused(FAR)) is Reason.SERVICE_UNAVAILABLE
    (manifests / "incoming").mkdir()
    folder.keep_manifest(version(PICTURES[0]))
    assert folder.remove_unused(FAR) == Usage(0, 0)
    assert folder.has(digest)


def test_nothing_is_removed_while_somebody_takes_pictures_in(folder: PictureFolder, tmp_path: Path) -> None:
    other = PictureFolder(tmp_path / "site", FolderLimits(min_free_bytes=0, lock_wait_s=0.0))
    with folder.taking_in(), other.taking_in():
        digest = folder.add(PICTURES[0])
        assert refusal(lambda: other.remove_unused(FAR)) is Reason.SERVICE_UNAVAILABLE
        assert folder.has(digest)
        folder.keep_manifest(version(PICTURES[0]))
    assert other.remove_unused(FAR) == Usage(0, 0)
    with pytest.raises(OSError, match="its own"), folder.taking_in():
        raise OSError("its own")


def test_a_manifest_that_was_kept_again_meanwhile_is_not_dropped(folder: PictureFolder, tmp_path: Path) -> None:
    name = folder.keep_manifest(version(PICTURES[0]))
    age(tmp_path, "manifests", name, 1000)
    seen = folder.kept_at(name)
    folder.keep_manifest(version(PICTURES[0]))
    assert not folder.drop_manifest(name, kept_at=seen)
    assert folder.manifests() == [name]
    assert folder.drop_manifest(name, kept_at=folder.kept_at(name))
    assert folder.kept_at(name) == 0
    assert not folder.drop_manifest(name)
    assert not folder.drop_manifest(name, kept_at=0)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.ENOSPC, Reason.STORAGE_FULL),
        (errno.EDQUOT, Reason.STORAGE_FULL),
        (errno.EROFS, Reason.SERVICE_UNAVAILABLE),
        (errno.EIO, Reason.SERVICE_UNAVAILABLE),
    ],
)
def test_what_the_disk_refuses_is_called_what_it_is(
    folder: PictureFolder, monkeypatch: pytest.MonkeyPatch, code: int, reason: Reason
) -> None:
    def refuses(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("splitmesh.datasets.contents.os.fsync", refuses)
    with pytest.raises(MeshError, match=os.strerror(code)) as error:
        folder.add(PICTURES[0])
    assert error.value.reason is reason


def test_a_place_of_the_disk_that_cannot_be_read_is_a_damaged_picture(
    folder: PictureFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = folder.add(PICTURES[0])

    def bad(path: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", bad)
        assert refusal(lambda: folder.read(digest)) is Reason.DIGEST_MISMATCH
        assert not folder.renew(digest)
        folder.add(PICTURES[0])
    assert folder.read(digest) == PICTURES[0]
