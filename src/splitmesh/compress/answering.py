"""A split version as it answers: head, what crosses at a rate, the segments behind. Knows nothing of references or labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from splitmesh.compress.work import Work
from splitmesh.errors import MeshError, Reason
from splitmesh.model.hop_codec import hop_codec
from splitmesh.model.manifest import Hop
from splitmesh.model.verify import run_chain
from splitmesh.runtime import Session, open_session
from splitmesh.tensor.codecs import codec_named
from splitmesh.tensor.entropy import RangeCodec
from splitmesh.tensor.framing import Frame, pack, unpack
from splitmesh.tensor.spec import Array, TensorLimits, as_bytes

GENERAL_CODEC = "zstd"
"""Of a hop without tables."""

LIMITS = TensorLimits(max_size_bytes=1 << 31)
"""Our own frames are not refused for their size here."""


class Answering:
    """Open sessions of a split version and the coders of its hops; close it, or use it in a ``with`` block."""

    def __init__(self, work: Work, *, threads: int) -> None:
        """MeshError MODEL_INCOMPLETE for a version without a split; what opening sessions and reading tables raise."""
        if work.manifest.split is None:
            raise MeshError(Reason.MODEL_INCOMPLETE, "this version is not split")
        self._hops = work.manifest.split.hops()
        self._opened = ExitStack()
        with ExitStack() as opening:
            self._segments: list[Session] = [
                opening.enter_context(closing(open_session(content, threads=threads))) for content in work.segments()
            ]
            self._codecs = [_codec(hop, work.artifacts) for hop in self._hops]
            self._opened = opening.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """The sessions."""
        self._opened.close()

    @property
    def rates(self) -> int:
        """Of the first hop; 1 where it has no tables."""
        coding = self._hops[0].coding
        return 1 if coding is None else len(coding.rates)

    def head(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """What the head gives, exits included."""
        return self._segments[0].run(feeds)

    def tail(self, features: Mapping[str, Array], rate: int = 0) -> dict[str, Array]:
        """The whole's outputs for what the head gave, crossed at this rate; later hops cross at their best."""
        tensors = dict(features)
        for number, (hop, codec, segment) in enumerate(zip(self._hops, self._codecs, self._segments[1:], strict=True)):
            if codec is not None:
                arrays = [tensors[info.name] for info in hop.wire]
                received = codec.coarse(arrays, rate if number == 0 else 0)
                tensors = {info.name: array for info, array in zip(hop.wire, received, strict=True)}
            tensors = segment.run({spec.name: tensors[spec.name] for spec in segment.inputs})
        return tensors

    def finish(self, features: Mapping[str, Array]) -> dict[str, Array]:
        """The segments behind the head and nothing else: for timing."""
        return run_chain(self._segments[1:], features)

    def sizes(self, features: Mapping[str, Array], rate: int = 0) -> list[int]:
        """Bytes that each sample of a batch takes behind the head, payload only."""
        codec, wire = self._codecs[0], [features[info.name] for info in self._hops[0].wire]
        if codec is None:
            return packed_sizes(wire)
        return [codec.size_bytes([array[row : row + 1] for array in wire], rate) for row in range(len(wire[0]))]

    def encode(self, features: Mapping[str, Array]) -> Frame:
        """One sample as the frame that crosses first, at the best rate."""
        codec = self._codecs[0]
        tensors = [(info.name, features[info.name]) for info in self._hops[0].wire]
        return pack(tensors, GENERAL_CODEC if codec is None else codec.at(0))

    def decode(self, frame: Frame) -> list[Array]:
        """The frame's tensors, as the receiver takes them out."""
        codec = self._codecs[0]
        return unpack(frame, LIMITS, None if codec is None else {codec.name: codec})


def packed_sizes(arrays: Sequence[Array]) -> list[int]:
    """Bytes of each sample of a batch, its tensors packed together by the general codec."""
    codec = codec_named(GENERAL_CODEC)
    return [
        len(codec.encode(b"".join(bytes(as_bytes(array[row : row + 1])) for array in arrays)))
        for row in range(len(arrays[0]))
    ]


def exit_answers(rows: Sequence[Array]) -> NDArray[np.int64]:
    """Class numbers ``[n, exits]`` of the exits' probabilities ``[n, classes]`` each."""
    return np.stack([np.asarray(row.argmax(axis=1), dtype=np.int64) for row in rows], axis=1)


def _codec(hop: Hop, artifacts: Mapping[str, bytes]) -> RangeCodec | None:
    return None if hop.coding is None else hop_codec(hop, hop.coding, artifacts[hop.coding.artifact])
