"""The model of ``models.py`` with its cut rounded to 8 bits and tables for several rates, made by hand: no recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import onnx

from splitmesh.model.artifacts import split_bytes
from splitmesh.model.manifest import HEAD, MANIFEST, TABLES, TAIL, Coding, Manifest, Rate
from splitmesh.model.preprocess import Preprocess
from splitmesh.model.quantize import calibrate, quantise_cut
from splitmesh.runtime import open_session
from splitmesh.tensor.entropy import RangeCodec, Tables
from splitmesh.tensor.spec import Array
from tests.support.models import CUT, LABELS, whole_model

WIRE = f"{CUT}.q8"
"""What crosses."""


@dataclass(frozen=True)
class Coded:
    """A version, and the codec of its cut."""

    artifacts: dict[str, bytes]
    codec: RangeCodec

    def codes(self, images: Array) -> Array:
        """What the head gives for ``[n, 1, side, side]``."""
        return run(self.artifacts[HEAD], {"image": images})[WIRE]

    def tail_scores(self, codes: Array) -> Array:
        """What the tail makes of it."""
        return run(self.artifacts[TAIL], {WIRE: codes})["logits"].reshape(-1)


def run(model: bytes, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Once."""
    with closing(open_session(model, threads=1)) as session:
        return session.run(feeds)


def coded_version(images: Array, rates: Sequence[tuple[int, int]], *, preprocess: Preprocess | None = None) -> Coded:
    """Ranges and tables from ``images`` ``[n, 1, side, side]``; ``rates`` are (channels, step), best first."""
    manifest, artifacts = split_bytes(whole_model(images.shape[-1]), [CUT], preprocess=preprocess, labels=LABELS)
    assert manifest.split is not None
    head, tail, rules = quantise_cut(
        onnx.load_model_from_string(artifacts[HEAD]),
        onnx.load_model_from_string(artifacts[TAIL]),
        calibrate(artifacts[HEAD], [{"image": images}]),
    )
    artifacts |= {HEAD: head.SerializeToString(), TAIL: tail.SerializeToString()}
    codes = run(artifacts[HEAD], {"image": images})[WIRE].astype(np.uint8)
    tables = Tables.build([codes], [np.array(rules[0].zero_point, np.uint8)], rates)
    split = manifest.split.rounded([rules])
    codec = RangeCodec(tables, [tensor.spec() for tensor in split.wire])
    stated = tuple(
        Rate(
            channels=channels,
            step=step,
            wire_bytes=float(np.mean([codec.size_bytes([code[None]], number) for code in codes])),
        )
        for number, (channels, step) in enumerate(rates)
    )
    coding = Coding(artifact=TABLES, rates=stated, encode_ms=0.1, decode_ms=0.1, samples=len(images))
    manifest = Manifest.model_validate(
        manifest.model_copy(update={"split": split.model_copy(update={"coding": coding})}).model_dump()
    )
    return Coded({**artifacts, TABLES: tables.to_bytes(), MANIFEST: manifest.to_json().encode()}, codec)
