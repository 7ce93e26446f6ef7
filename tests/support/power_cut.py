"""A disk whose power can be cut: ext4 in a file, mounted by the kernel. What the kernel had not written to the disk is not in
a copy of the file that is taken while it is mounted; the copy is what a power cut would have left.

Needs root, a loop device and mkfs.ext4; :func:`why_not` says what is missing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

SIZE_BYTES = 48 << 20
COMMIT_S = 300
"""Between two commits of the journal that nobody asked for: whatever is not synced is lost, not only what was written a
moment ago."""


class CutDisk:
    """``with CutDisk(folder) as disk:`` then write below ``disk.at``."""

    def __init__(self, folder: Path, *, size_bytes: int = SIZE_BYTES) -> None:
        self.at = folder / "disk"
        """Where it is mounted."""
        self._image = folder / "disk.img"
        self._size_bytes = size_bytes
        self._cuts = 0

    def __enter__(self) -> Self:
        self.at.mkdir(parents=True)
        with self._image.open("wb") as image:
            image.truncate(self._size_bytes)
        _run("mkfs.ext4", "-q", "-F", "-m", "0", str(self._image))
        self._mount()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After a failure somebody may hold a file still: the failure is what has to be told.
        _run("umount", *(["--lazy"] if error is not None else []), str(self.at))

    def image(self) -> Path:
        """The disk as a power cut would leave it now. Processes may go on writing meanwhile: the copy is of one moment or
        torn, as a disk is."""
        self._cuts += 1
        copy = self._image.with_name(f"cut-{self._cuts}.img")
        shutil.copyfile(self._image, copy)
        return copy

    def restart_from(self, image: Path) -> None:
        """Mounted again as it was in the image; nobody may use the disk."""
        _run("umount", str(self.at))
        os.replace(image, self._image)
        self._mount()

    def _mount(self) -> None:
        _run("mount", "-o", f"loop,commit={COMMIT_S}", str(self._image), str(self.at))


@cache
def why_not() -> str:
    """Why a power cut cannot be simulated here; empty: it can."""
    if os.geteuid() != 0:
        return "only root may mount a disk"
    missing = [tool for tool in ("mkfs.ext4", "mount", "umount") if shutil.which(tool, path=_PATH) is None]
    if missing:
        return f"{', '.join(missing)} is missing"
    folder = Path(tempfile.mkdtemp(prefix="splitmesh-disk-"))
    try:
        with CutDisk(folder, size_bytes=4 << 20):
            return ""
    except RuntimeError as error:
        return str(error)
    finally:
        with suppress(OSError):
            shutil.rmtree(folder)


_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _run(*command: str) -> None:
    done = subprocess.run(
        command, env={**os.environ, "PATH": _PATH}, capture_output=True, text=True, check=False, timeout=60
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]}: {done.stderr.strip() or done.returncode}")
