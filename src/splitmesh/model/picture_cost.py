"""What sending the whole picture costs with common image codecs: bytes, coding times, and what loss does to answers.

Measured on a version's calibration pictures, which already have the size the model takes: a camera that sends more
pixels sends more bytes. Knows no link.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from statistics import fmean, median

import numpy as np
from numpy.typing import NDArray

from splitmesh.model.calibration import PIXELS, Calibration
from splitmesh.model.classes import as_probabilities
from splitmesh.model.manifest import Manifest
from splitmesh.model.picture_codecs import PictureCodec, available, decode_picture, encode_picture
from splitmesh.model.profile_data import PictureProfile
from splitmesh.runtime import Session, open_session
from splitmesh.tensor.spec import DTYPES

MAX_PICTURES = 64
"""Pictures behind mean sizes and agreements."""
BATCH = 8


_CODECS = (
    PictureCodec("jpeg q75", "JPEG", 75),
    PictureCodec("jpeg q90", "JPEG", 90),
    PictureCodec("webp q80", "WEBP", 80),
    PictureCodec("png", "PNG", None),
)


def picture_costs(
    about: Manifest,
    samples: Calibration | None,
    whole: bytes,
    *,
    threads: int = 1,
    budget_s: float = 5.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, PictureProfile]:
    """By codec; without calibration pictures only ``raw``, the input's own bytes.

    Args:
        about: of the version.
        samples: its calibration samples.
        whole: the serialised model; run on decoded pictures of a classifier, to see what loss does to its answers.
        threads: of its session.
        budget_s: no further run of it begins after this many seconds; fewer pictures are compared then.
        clock: seconds.

    Raises what running the model raises.
    """
    pixels = None if samples is None else samples.pictures
    if samples is None or pixels is None:
        size = _raw_bytes(about)
        return {"raw": PictureProfile(wire_bytes=size)} if size else {}
    coded = {codec: [_code(picture, codec, clock) for picture in pixels[:MAX_PICTURES]] for codec in available(_CODECS)}
    agreement: dict[PictureCodec, float] = {}
    if about.class_output:
        pictures = {codec: np.stack([entry.decoded for entry in entries]) for codec, entries in coded.items()}
        with closing(open_session(whole, threads=threads)) as session:
            agreement = _agreement(session, about.class_output, samples, pictures, clock() + budget_s, clock)
    return {
        codec.name: PictureProfile(
            wire_bytes=round(fmean(entry.size_bytes for entry in entries)),
            encode_ms=median(entry.encode_ms for entry in entries),
            decode_ms=median(entry.decode_ms for entry in entries),
            agreement=agreement.get(codec, 1.0 if codec.quality is None and about.class_output else None),
        )
        for codec, entries in coded.items()
    }


@dataclass(frozen=True, slots=True)
class _Coded:
    size_bytes: int
    encode_ms: float
    decode_ms: float
    decoded: NDArray[np.uint8]


def _code(picture: NDArray[np.uint8], codec: PictureCodec, clock: Callable[[], float]) -> _Coded:
    start = clock()
    data = encode_picture(picture, codec)
    encoded = clock()
    decoded = decode_picture(data, codec, channels=picture.shape[2])
    return _Coded(len(data), (encoded - start) * 1e3, (clock() - encoded) * 1e3, decoded)


def _agreement(
    session: Session,
    class_output: str,
    samples: Calibration,
    pictures: dict[PictureCodec, NDArray[np.uint8]],
    until: float,
    clock: Callable[[], float],
) -> dict[PictureCodec, float]:
    """Share of pictures with the same top class; every codec on the same ones, as many as there is time for."""
    lossy = {codec: decoded for codec, decoded in pictures.items() if codec.quality is not None}
    size = samples.fixed_batch or BATCH
    limit = min(MAX_PICTURES, samples.samples)
    same, seen = dict.fromkeys(lossy, 0), 0
    for start in range(0, limit if samples.fixed_batch is None else limit - size + 1, size):
        rows = slice(start, min(start + size, limit))
        answers = _classes(session, class_output, samples, rows)
        for codec, decoded in lossy.items():
            changed = replace(samples, tensors={PIXELS: decoded})
            same[codec] += int((_classes(session, class_output, changed, rows) == answers).sum())
        seen += len(answers)
        if clock() > until:
            break
    return {codec: count / seen for codec, count in same.items()} if seen else {}


def _classes(session: Session, class_output: str, samples: Calibration, rows: slice) -> NDArray[np.int64]:
    classes: NDArray[np.int64] = as_probabilities(session.run(samples.feeds(rows))[class_output]).argmax(axis=1)
    return classes


def _raw_bytes(about: Manifest) -> int:
    """One picture's pixels, or one sample of the model's inputs."""
    if about.preprocess is not None:
        return about.preprocess.width * about.preprocess.height * about.preprocess.channels
    return sum(_sample_bytes(info.dtype, info.shape) for info in about.whole.inputs)


def _sample_bytes(dtype: str, shape: Sequence[int]) -> int:
    return math.prod(max(1, dim) for dim in shape) * DTYPES[dtype].itemsize
