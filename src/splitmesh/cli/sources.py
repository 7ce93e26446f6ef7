"""Cameras for the command line: a folder of pictures or a video file, as encoded pictures or as calibration samples."""

from __future__ import annotations

import asyncio
import io
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from splitmesh.cli.output import how_to_install
from splitmesh.compress.sample_files import PICTURES
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.model.manifest import Manifest

if TYPE_CHECKING:
    from splitmesh.model.calibration import Calibration

TABLES = frozenset({".csv", ".json", ".safetensors"})
"""Files that say what the samples of a folder are, or hold them."""
JPEG_QUALITY = 90


def frames(source: Path, limit: int | None = None) -> Iterator[bytes]:
    """Pictures of a folder by name, or frames of a video as JPEG q90; at most ``limit``.

    FIELD_INVALID when the source is missing or holds none; video needs the extra ``video`` (PyAV).
    """
    pictures = _folder(source) if source.is_dir() else _video(source)
    for number, picture in enumerate(pictures):
        if limit is not None and number >= limit:
            return
        yield picture


async def paced(pictures: Iterator[bytes], per_s: float | None) -> AsyncIterator[bytes]:
    """At most so many pictures a second, as a camera takes them; without a rate as they are asked for."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    for number in itertools.count():
        picture = await asyncio.to_thread(next, pictures, None)
        if picture is None:
            return
        if per_s is not None:
            await asyncio.sleep(begun + number / per_s - loop.time())
        yield picture


def read_samples(source: Path, manifest: Manifest, spool: Path) -> Calibration:
    """Calibration samples of a folder (see ``splitmesh.compress.load_samples``) or of a video, the pixels in ``spool``."""
    from splitmesh.compress.load_samples import load_folder, load_pictures

    if source.is_dir() or source.suffix.lower() in TABLES:
        return load_folder(source, manifest, spool)
    return load_pictures(frames(source), manifest, spool)


def _folder(folder: Path) -> Iterator[bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    if not paths:
        raise field_error("source", f"no pictures ({', '.join(sorted(PICTURES))}) below {folder}")
    for path in paths:
        yield path.read_bytes()


def _video(path: Path) -> Iterator[bytes]:
    if not path.is_file():
        raise field_error("source", f"{path} is neither a folder nor a file")
    if path.suffix.lower() in PICTURES:
        yield path.read_bytes()
        return
    try:
        import av
    except ImportError as error:
        raise field_error("source", f"video files need PyAV: {how_to_install('video')}") from error
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise field_error("source", f"{path} holds no video")
            for frame in container.decode(video=0):
                yield _jpeg(Image.fromarray(frame.to_ndarray(format="rgb24")))
    except av.error.FFmpegError as error:
        raise MeshError(Reason.IMAGE_UNDECODABLE, f"{path} cannot be read as a video") from error


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
