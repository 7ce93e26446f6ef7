"""Every way to run a model, measured and not predicted: real sessions, real coding of other pictures than the profile's.

The whole model is timed in every round beside the pieces, and the round's times are divided by how much slower the whole
ran in these rounds than it did, timed the same way, when the profile was made: otherwise what else the machine does would
decide. The profile's own time of the whole is no part of this: where that is wrong, the plan pays for it.
"""

from __future__ import annotations

import io
import random
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from statistics import fmean, median

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from splitmesh.model.cuts import Cut, list_cuts, resolve_cut
from splitmesh.model.graph import Graph
from splitmesh.model.plan_options import Kind, Link, Option
from splitmesh.model.preprocess import Preprocess
from splitmesh.model.profile_data import FLOAT_CODEC, QUANTISED_CODEC
from splitmesh.model.quantize import calibrate, quantise_cut
from splitmesh.model.split import split_model
from splitmesh.runtime import Session, open_session
from splitmesh.tensor import codecs
from splitmesh.tensor.spec import Array, as_bytes

PICTURE_CODECS: dict[str, tuple[str, dict[str, int]]] = {
    "jpeg q75": ("JPEG", {"quality": 75}),
    "jpeg q90": ("JPEG", {"quality": 90}),
    "webp q80": ("WEBP", {"quality": 80}),
    "png": ("PNG", {}),
}
"""As the product names them."""

Key = tuple[Kind, tuple[str, ...], str]
"""Kind, cut, codec of an option."""

Feed = dict[str, Array]


@dataclass(frozen=True, slots=True)
class Cost:
    """One way to run the model; means or medians per sample."""

    edge_ms: float
    """Operators and packing on the edge."""
    size_bytes: float
    """0: nothing crosses."""
    cloud_ms: float

    def latency_ms(self, slowdown: float, link: Link) -> float:
        """Over a link that sends each byte at its rate after half a round trip, and an edge that much slower."""
        if not self.size_bytes:
            return self.edge_ms * slowdown
        return self.edge_ms * slowdown + link.transfer_ms(self.size_bytes) + link.rtt_ms + self.cloud_ms


@dataclass(slots=True)
class _Times:
    """One cut with one codec, in ms per round."""

    head: list[float] = field(default_factory=list)
    tail: list[float] = field(default_factory=list)
    encode: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def cost(self, drift: float) -> Cost:
        edge = (median(self.head) + median(self.encode)) / drift
        return Cost(edge, fmean(self.sizes), (median(self.tail) + median(self.decode)) / drift)


def key_of(option: Option) -> Key:
    """Which measurement an option of a plan stands for."""
    return option.kind, tuple(sorted(option.cut)), option.codec


def rival_cuts(graph: Graph, count: int) -> list[Cut]:
    """About ``count`` candidates: the work is divided evenly, and of each part the smallest cut is taken, the last of equal
    ones (behind the activation, which packs better). No profile is asked.
    """
    best: dict[int, Cut] = {}
    for cut in list_cuts(graph):
        part = min(count - 1, int(cut.position * count))
        if part not in best or cut.size_bytes <= best[part].size_bytes:
            best[part] = cut
    return [best[part] for part in sorted(best)]


def times_ms(session: Session, feeds: Sequence[Feed], runs: int) -> list[float]:
    """Of so many runs after one that warms up."""
    _clocked(session, feeds[0])
    return [_clocked(session, feeds[run % len(feeds)])[1] for run in range(runs)]


def measure(
    whole: bytes,
    graph: Graph,
    cuts: Sequence[tuple[str, ...]],
    preprocess: Preprocess,
    calibration: Sequence[Feed],
    pictures: NDArray[np.uint8],
    *,
    reference_ms: float,
    seconds: float,
    least_rounds: int = 3,
) -> dict[Key, Cost]:
    """All ways at these cuts, the whole model at the edge, and every picture codec with the whole model in the cloud.

    Args:
        whole: the serialised model, with one input.
        graph: the same, loaded.
        cuts: tensors of each.
        preprocess: from pixels to the input.
        calibration: feeds that the 8-bit ranges come from.
        pictures: to measure with, ``[n, height, width, channels]``, others than those of ``calibration``.
        reference_ms: what the whole took when the profile was made; all times are brought to that speed of the machine.
        seconds: about how long the rounds take together.
        least_rounds: per cut, however long they take.
    """
    name = graph.inputs[0]
    feeds: list[Feed] = [{name: preprocess.normalise(picture[None])} for picture in pictures]
    times: dict[Key, _Times] = {}
    drift: dict[tuple[str, ...], float] = {}
    order = list(cuts)
    random.Random(0).shuffle(order)
    with closing(open_session(whole)) as session:
        times_ms(session, feeds, 2)
        for tensors in order:
            until = time.monotonic() + seconds / len(order)
            beside = _rounds(session, graph, tensors, calibration, feeds, times, until, least_rounds)
            drift[tuple(sorted(tensors))] = median(beside) / reference_ms
        found = {key: entry.cost(drift[key[1]]) for key, entry in times.items()}
        found[Kind.EDGE_ONLY, (), ""] = Cost(reference_ms, 0, 0.0)
        for codec in PICTURE_CODECS:
            found[Kind.CLOUD_ONLY, (), codec] = _picture_cost(codec, pictures, session, feeds, reference_ms)
    return found


def _rounds(
    whole: Session,
    graph: Graph,
    tensors: tuple[str, ...],
    calibration: Sequence[Feed],
    feeds: Sequence[Feed],
    times: dict[Key, _Times],
    until: float,
    least: int,
) -> list[float]:
    """Plain and rounded pieces in turns with the whole model, whose times are returned."""
    split = split_model(graph, resolve_cut(graph, tensors))
    plain = split.head.SerializeToString(), split.tail.SerializeToString()
    rounded = quantise_cut(split.head, split.tail, calibrate(plain[0], calibration))[:2]
    pieces = {FLOAT_CODEC: plain, QUANTISED_CODEC: tuple(piece.SerializeToString() for piece in rounded)}
    beside: list[float] = []
    with ExitStack() as stack:
        opened = {
            codec: [stack.enter_context(closing(open_session(piece))) for piece in both]
            for codec, both in pieces.items()
        }
        turn = -1
        while turn < least or time.monotonic() < until:
            feed = feeds[turn % len(feeds)]
            for codec, (head, tail) in opened.items():
                entry = times.setdefault((Kind.SPLIT, tuple(sorted(tensors)), codec), _Times())
                # The first turn warms up.
                _through(head, tail, feed, entry if turn >= 0 else _Times())
            if turn >= 0:
                beside.append(_clocked(whole, feed)[1])
            turn += 1
    return beside


def _through(head: Session, tail: Session, feed: Feed, entry: _Times) -> None:
    outputs, head_ms = _clocked(head, feed)
    crossing = {spec.name: outputs[spec.name] for spec in tail.inputs if spec.name in outputs}
    message = b"".join(as_bytes(array) for array in crossing.values())
    start = time.perf_counter()
    packed = codecs.encode("zstd", message)
    encoded = time.perf_counter()
    codecs.decode("zstd", packed, len(message))
    decoded = time.perf_counter()
    _, tail_ms = _clocked(tail, {**{name: feed[name] for name in feed if name in _names(tail)}, **crossing})
    entry.head.append(head_ms)
    entry.tail.append(tail_ms)
    entry.encode.append((encoded - start) * 1e3)
    entry.decode.append((decoded - encoded) * 1e3)
    entry.sizes.append(len(packed))


def _names(session: Session) -> set[str]:
    return {spec.name for spec in session.inputs}


def _clocked(session: Session, feed: Feed) -> tuple[dict[str, Array], float]:
    start = time.perf_counter()
    outputs = session.run(feed)
    return outputs, (time.perf_counter() - start) * 1e3


def _picture_cost(
    codec: str, pictures: NDArray[np.uint8], whole: Session, feeds: Sequence[Feed], reference_ms: float
) -> Cost:
    """Median coding times, mean bytes; the whole model in the cloud."""
    image_format, options = PICTURE_CODECS[codec]
    encoding, sizes, decoding, beside = list[float](), list[int](), list[float](), list[float]()
    for picture, feed in zip(pictures, feeds, strict=True):
        image, file = Image.fromarray(picture), io.BytesIO()
        start = time.perf_counter()
        image.save(file, format=image_format, **options)
        encoded = time.perf_counter()
        np.asarray(Image.open(file, formats=[image_format]).convert("RGB"))
        encoding.append((encoded - start) * 1e3)
        decoding.append((time.perf_counter() - encoded) * 1e3)
        sizes.append(file.tell())
        beside.append(_clocked(whole, feed)[1])
    drift = median(beside) / reference_ms
    return Cost(median(encoding) / drift, fmean(sizes), median(decoding) / drift + reference_ms)
