"""What it would cost to send every picture instead: bytes by codec, and what the original model then answers.

Twice where the picture files are known: the pixels that the network sees, resized before they are sent, and the whole
picture as the camera took it, resized behind the link. The first is the cheaper upload and the fairer rival of a cut.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from splitmesh.compress.reference import Reference
from splitmesh.compress.report import Point
from splitmesh.compress.tally import Tally
from splitmesh.compress.work import Rows, Samples
from splitmesh.errors import MeshError
from splitmesh.model.calibration import PIXELS, Calibration
from splitmesh.model.picture_codecs import PictureCodec, available, decode_picture, encode_picture
from splitmesh.model.preprocess import Preprocess, decode_image
from splitmesh.runtime import Session

CODECS = (
    *(PictureCodec(f"jpeg q{quality}", "JPEG", quality) for quality in (10, 30, 50, 70, 90)),
    *(PictureCodec(f"webp q{quality}", "WEBP", quality) for quality in (0, 5, 20, 50, 80)),
    PictureCodec("png", "PNG", None, optimise=True),
)

MAX_PICTURES = 1000
"""Pictures of the hold-out that uploads are measured on; taken evenly from it."""
MAX_FULL_SIZE = 200
"""The same for whole pictures, which take longer to code."""

FULL_SIZE = ", full size"
"""Ends the name of a point that is about whole pictures."""

Coder = Callable[[int], tuple[int, NDArray[np.uint8]]]
"""Row of the samples to bytes on the wire and the pixels that arrive."""


def measure_uploads(
    samples: Samples, session: Session, class_output: str, *, on_progress: Callable[[float], None] = lambda share: None
) -> tuple[Point, ...]:
    """A point per codec, and per codec at full size where the samples know their files; none without pictures.

    A codec that cannot hold the largest of the whole pictures has no point at full size.

    Args:
        samples: measured on their hold-out.
        session: the original whole model.
        class_output: its output with a score per class; empty: a model without classes.
        on_progress: told the share that is done.

    Raises what running the model raises.
    """
    calibration = samples.calibration
    pixels = calibration.pictures
    if pixels is None or calibration.preprocess is None:
        return ()
    resized = Reference(session, samples, _even(samples.holdout, MAX_PICTURES), class_output)
    jobs: list[tuple[str, Coder, Reference]] = [
        (codec.name, _resized(pixels, codec), resized) for codec in available(CODECS)
    ]
    files = calibration.sources
    if files is not None:
        whole = Reference(session, samples, _even(samples.holdout, MAX_FULL_SIZE), class_output)
        side = _longest_side(files, whole.rows, calibration.preprocess)
        jobs += [
            (codec.name + FULL_SIZE, _whole_picture(files, codec, calibration.preprocess), whole)
            for codec in available(CODECS)
            if 0 < side <= codec.largest_side
        ]
    points = []
    for number, (name, coder, reference) in enumerate(jobs):
        points.append(_measured(name, coder, calibration, reference, session))
        on_progress((number + 1) / len(jobs))
    return tuple(points)


def _measured(name: str, coder: Coder, calibration: Calibration, reference: Reference, session: Session) -> Point:
    tally = Tally(reference.class_output)
    sizes: list[int] = []
    for batch in reference:
        coded = [coder(int(row)) for row in batch.rows]
        sizes += [size for size, _ in coded]
        arrived = replace(calibration, tensors={PIXELS: np.stack([picture for _, picture in coded])})
        tally.add(session.run(arrived.feeds(slice(0, len(coded)))), batch.expected, batch.labels)
    return tally.point(name, "upload", float(np.mean(sizes)))


def _resized(pixels: NDArray[np.uint8], codec: PictureCodec) -> Coder:
    def code(row: int) -> tuple[int, NDArray[np.uint8]]:
        picture = np.asarray(pixels[row])
        data = encode_picture(picture, codec)
        return len(data), decode_picture(data, codec, channels=picture.shape[2])

    return code


def _whole_picture(files: tuple[Path, ...], codec: PictureCodec, preprocess: Preprocess) -> Coder:
    def code(row: int) -> tuple[int, NDArray[np.uint8]]:
        image = decode_image(files[row].read_bytes()).convert(preprocess.mode)
        picture = np.asarray(image, dtype=np.uint8).reshape(image.height, image.width, preprocess.channels)
        data = encode_picture(picture, codec)
        return len(data), preprocess.pixels(data)

    return code


def _longest_side(files: tuple[Path, ...], rows: Rows, preprocess: Preprocess) -> int:
    """Of all whole pictures, pixels; 0 when one is not readable any more, or all are of the very size the network sees."""
    larger, longest = False, 0
    try:
        for row in rows:
            image = decode_image(files[int(row)].read_bytes())
            preprocess.pixels(image)
            larger = larger or image.size != (preprocess.width, preprocess.height)
            longest = max(longest, *image.size)
    except (OSError, MeshError):
        return 0
    return longest if larger else 0


def _even(rows: Rows, most: int) -> Rows:
    n = min(len(rows), most)
    return rows[np.arange(n) * len(rows) // max(1, n)]
