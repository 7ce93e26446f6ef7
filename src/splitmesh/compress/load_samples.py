"""Reads samples for a recipe: pictures decoded one at a time, resized, and kept in a memory-mapped file.

However many pictures there are, one of them is in memory. Where they lie and what class they have, ``sample_files.py``
finds out; what the pixels become, the manifest's ``Preprocess`` says.
"""

from __future__ import annotations

import math
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from splitmesh.compress.sample_files import PictureFile, find_pictures
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.model.calibration import (
    MAX_CALIBRATION_BYTES,
    MAX_SAMPLES,
    PIXELS,
    Calibration,
    known_labels,
    require_batch,
    unpack_calibration,
)
from splitmesh.model.manifest import Manifest
from splitmesh.model.preprocess import Preprocess

SPOOL = "pixels.u8"
"""The memory-mapped file, uint8 ``[samples, height, width, channels]``, row-major."""

MAX_UNREADABLE_SHARE = 0.05
"""Of the pictures; when more cannot be read, something else is wrong."""
MAX_PICTURE_BYTES = 256 << 20
"""Of one picture file; a larger one counts as unreadable."""
NAMED = 5
"""Unreadable pictures that an error names."""

_NOT_READ = frozenset({Reason.IMAGE_UNDECODABLE, Reason.IMAGE_TOO_LARGE})

Advance = Callable[[int, int], None]
"""Called with the pictures done and all of them."""


def load_folder(
    source: Path,
    manifest: Manifest,
    spool: Path,
    *,
    limit: int | None = None,
    split: str = "",
    on_progress: Advance | None = None,
) -> Calibration:
    """Samples of a folder, a table, annotations (see :func:`find_pictures`) or a packed ``.safetensors`` file.

    Args:
        source: of the pictures.
        manifest: of the model; says how pictures become inputs, and how its classes are called.
        spool: a folder, made when absent; the pixels lie there in ``pixels.u8`` for as long as the samples are used.
        limit: at most so many samples, taken evenly from all of them in order; None: ``MAX_SAMPLES``.
        split: only rows of a table with this entry in its column ``split``; empty: all.
        on_progress: told as pictures are read.

    A picture that cannot be read is left out and counted (``Calibration.unreadable``). The same files give the same
    samples. Raises MeshError FIELD_INVALID (nothing there, more than ``MAX_UNREADABLE_SHARE`` unreadable, classes that
    are not the model's, paths out of the folder, a model that takes no pictures), STORAGE_FULL when the pixels do not
    fit beside the spool, CALIBRATION_INSUFFICIENT for fewer than the model's fixed batch, and the errors of
    :func:`unpack_calibration`.
    """
    if source.suffix.lower() == ".safetensors" and source.is_file():
        if source.stat().st_size > MAX_CALIBRATION_BYTES:
            raise field_error("calibration", f"{source} is larger than {MAX_CALIBRATION_BYTES} bytes")
        return _limited(unpack_calibration(source.read_bytes(), manifest), limit)
    preprocess = _pipeline(manifest)
    found = _spread(find_pictures(source, manifest.labels, split=split), limit)
    reads = [(str(entry.path), partial(_read, entry.path)) for entry in found]
    kept, unreadable, pixels = _spool(reads, preprocess, spool, on_progress)
    entries = [found[index] for index in kept]
    numbers = {name: number for number, name in enumerate(manifest.labels)}
    labels = np.array([numbers.get(entry.label, -1) for entry in entries], dtype=np.int64)
    samples = Calibration(
        {PIXELS: pixels},
        preprocess,
        tuple(info.spec() for info in manifest.whole.inputs),
        known_labels(labels),
        _groups(entries),
        tuple(entry.path for entry in entries),
        unreadable,
    )
    require_batch(samples)
    return samples


def load_pictures(
    pictures: Iterable[bytes], manifest: Manifest, spool: Path, *, limit: int | None = None
) -> Calibration:
    """Samples of encoded pictures, such as a video's, the first ``limit`` of them; no classes. Errors as above."""
    preprocess = _pipeline(manifest)
    most = min(limit or MAX_SAMPLES, MAX_SAMPLES)
    reads = ((f"picture {number}", partial(bytes, data)) for number, data in enumerate(islice(pictures, most)))
    _, unreadable, pixels = _spool(reads, preprocess, spool, None)
    inputs = tuple(info.spec() for info in manifest.whole.inputs)
    samples = Calibration({PIXELS: pixels}, preprocess, inputs, unreadable=unreadable)
    require_batch(samples)
    return samples


def _pipeline(manifest: Manifest) -> Preprocess:
    if manifest.preprocess is None:
        raise field_error("calibration", "the model takes tensors; pictures need a preprocess to become inputs")
    if len(manifest.whole.inputs) != 1:
        raise MeshError(Reason.MODEL_INCOMPLETE, f"pictures feed one input, the model has {len(manifest.whole.inputs)}")
    return manifest.preprocess


def _spread(found: Sequence[PictureFile], limit: int | None) -> list[PictureFile]:
    """So many, evenly from all: the first ones of a sorted listing are often all of one class."""
    if limit is not None and limit < 1:
        raise field_error("limit", f"is {limit}, expected at least 1")
    most = min(limit or MAX_SAMPLES, MAX_SAMPLES)
    return [found[index] for index in _even(len(found), most)]


def _even(n: int, most: int) -> list[int]:
    return list(range(n)) if n <= most else [turn * n // most for turn in range(most)]


def _limited(samples: Calibration, limit: int | None) -> Calibration:
    if limit is None or samples.samples <= limit:
        return samples
    rows = np.array(_even(samples.samples, max(1, limit)), dtype=np.int64)
    chosen = replace(
        samples,
        tensors={name: array[rows] for name, array in samples.tensors.items()},
        labels=None if samples.labels is None else known_labels(samples.labels[rows]),
        groups=None if samples.groups is None else samples.groups[rows],
    )
    require_batch(chosen)
    return chosen


def _spool(
    reads: Iterable[tuple[str, Callable[[], bytes]]],
    preprocess: Preprocess,
    folder: Path,
    on_progress: Advance | None,
) -> tuple[list[int], int, NDArray[np.uint8]]:
    """Which of the pictures could be read, how many could not, and their pixels as a read-only memory map.

    Written as a file and mapped at the end: a full disk is an error here, where in a written map it would be a signal.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shape = (preprocess.height, preprocess.width, preprocess.channels)
    total = len(reads) if isinstance(reads, Sequence) else None
    if total is not None:
        _require_space(folder, total * math.prod(shape))
    kept: list[int] = []
    broken: list[str] = []
    partly = folder / f".{SPOOL}.{os.getpid()}"
    try:
        with open(partly, "wb") as file:
            for number, (name, read) in enumerate(reads):
                try:
                    file.write(preprocess.pixels(read()).tobytes())
                    kept.append(number)
                except MeshError as error:
                    if error.reason not in _NOT_READ:
                        raise
                    broken.append(f"{name} ({error.message})")
                if total is not None:
                    _require_readable(broken, total)
                    if on_progress is not None:
                        on_progress(number + 1, total)
        _require_readable(broken, len(kept) + len(broken))
        if not kept:
            raise field_error("calibration", "there is no picture")
        os.replace(partly, folder / SPOOL)
    except OSError as error:
        raise MeshError(Reason.STORAGE_FULL, f"the pixels cannot be kept in {folder}: {error.strerror}") from error
    finally:
        partly.unlink(missing_ok=True)
    return kept, len(broken), np.memmap(folder / SPOOL, dtype=np.uint8, mode="r", shape=(len(kept), *shape))


def _require_space(folder: Path, size_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if size_bytes > free:
        raise MeshError(
            Reason.STORAGE_FULL,
            f"the pixels take {size_bytes} bytes, {folder} has {free} bytes left; take fewer pictures",
        )


def _require_readable(broken: Sequence[str], total: int) -> None:
    if len(broken) > MAX_UNREADABLE_SHARE * total:
        named = "; ".join(broken[:NAMED])
        more = f"; and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
        raise field_error(
            "calibration",
            f"at least {len(broken)} of {total} pictures cannot be read, at most {MAX_UNREADABLE_SHARE:.0%} may be left "
            f"out: {named}{more}",
        )


def _read(path: Path) -> bytes:
    """A regular file's content; what cannot be read is no picture."""
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode) or about.st_size > MAX_PICTURE_BYTES:
            raise MeshError(Reason.IMAGE_TOO_LARGE, f"no file of at most {MAX_PICTURE_BYTES} bytes")
        return path.read_bytes()
    except OSError as error:
        raise MeshError(Reason.IMAGE_UNDECODABLE, error.strerror or "cannot be read") from error


def _groups(entries: Sequence[PictureFile]) -> NDArray[np.int64] | None:
    """A number per group; whoever names none is one of its own. None where nobody does."""
    if not any(entry.group for entry in entries):
        return None
    names = [f"g{entry.group}" if entry.group else f"s{number}" for number, entry in enumerate(entries)]
    return np.unique(names, return_inverse=True)[1].astype(np.int64)
