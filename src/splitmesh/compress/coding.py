"""Entropy tables for a rounded cut, and the rates at which it can cross.

A rate is a number of channels and a step (``splitmesh.tensor.entropy``); the graphs are the same at every
rate. Tables come from the fit samples, the choice of rates from the validation samples, every figure from the hold-out.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitmesh.compress.answers import Answers, Comparison, Distance, Original
from splitmesh.compress.work import BATCH, Context, Rows, Work
from splitmesh.errors import MeshError, Reason
from splitmesh.model.manifest import TABLES, Coding, Manifest, Rate, SplitInfo
from splitmesh.model.ranges import channel_axis
from splitmesh.runtime import Session, open_session
from splitmesh.tensor.entropy import RangeCodec, Tables
from splitmesh.tensor.spec import as_bytes

STEPS = (1, 2, 4, 8, 16, 32)
"""Tried for every number of channels."""

MAX_CODE_BYTES = 256 << 20
"""8-bit values of one part of the samples held in memory; more samples are left out."""

SIZED_SAMPLES = 64
"""Samples whose payloads are coded to know the size of a candidate."""

VALIDATION_SAMPLES = 400
"""At most so many decide."""

SMALLER = 0.75
"""A further rate takes at most this share of the bytes of the one before it."""

SAVES_BYTES = 16.0
"""And at least this much less: a frame has headers of its own."""

USEFUL_AGREEMENT = 0.9
"""A further rate keeps this share of the agreement of the best."""

USEFUL_ERROR = 0.5
"""Without classes a further rate's outputs are off by at most this."""

TELL_BELOW = 0.98
"""Agreement of the largest rate below which a person is told."""

HALF = 0.5
"""Of the budget is kept on the validation samples: the other half is for the luck of the hold-out. Without a budget half
a sample more may be expected to be lost."""

SLACK = (1.1, 0.002)
"""Without classes and without a budget the best rate may be off by the finest's error times this, and this more."""

Codes = list[NDArray[np.uint8]]
Pair = tuple[int, int]
"""Channels and step."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A rate that was tried on the validation samples."""

    pair: Pair
    size: float
    """Mean bytes of a payload."""
    distance: Distance

    def rank(self) -> tuple[float, float]:
        """The more the better: the fewest answers lost, then how near the outputs are."""
        return (-(self.distance.expected or 0.0), -self.distance.output_error)


def attach_tables(work: Work, context: Context, *, rates: Sequence[Pair] | None = None, most: int = 4) -> Work:
    """The version with entropy tables and at least one rate, the best first.

    Args:
        work: split in two; what crosses is rounded to 8 bits. Where something else crosses too it stays as it is.
        context: of the step.
        rates: (channels, step) of each, the largest first; None: chosen.
        most: rates, where they are chosen; fewer where they would not differ.

    Raises MeshError MODEL_INCOMPLETE for a version without such a cut, MODEL_SHAPE_UNKNOWN for a fixed batch above 1,
    CALIBRATION_INSUFFICIENT for samples that leave nothing to choose or to measure with.
    """
    split = work.manifest.split
    if split is None or split.middle or not split.quantisation:
        raise MeshError(Reason.MODEL_INCOMPLETE, "only a version cut in two and rounded there is entropy coded")
    if any(info.dtype != "uint8" for info in split.wire):
        context.remark("beside 8-bit tensors others cross; the cut is packed by zstd")
        return work
    with ExitStack() as stack:
        coder = stack.enter_context(closing(CutCoder(work, context)))
        if rates is None:
            rates = [candidate.pair for candidate in choose_rates(coder, context, most)]
        context.progress("measure the rates on the hold-out", 0.9)
        tables = coder.tables(rates)
        measured, encode_ms, decode_ms, samples = _measure(coder, context, tables)
    kept = [rate for number, rate in enumerate(measured) if _goes_down(measured, number)]
    if len(kept) < len(measured):  # on other samples it is not the smaller one after all
        tables = coder.tables([(rate.channels, rate.step) for rate in kept])
    coding = Coding(artifact=TABLES, rates=tuple(kept), encode_ms=encode_ms, decode_ms=decode_ms, samples=samples)
    manifest = work.manifest.model_copy(update={"split": split.model_copy(update={"coding": coding})})
    return Work(Manifest.from_json(manifest.to_json()), {**work.artifacts, TABLES: tables.to_bytes()})


class CutCoder:
    """Head and tail of a version around its rounded cut, and the fit samples' codes."""

    def __init__(self, work: Work, context: Context) -> None:
        """MeshError MODEL_SHAPE_UNKNOWN when the model takes batches of one size above 1."""
        fixed = context.samples.calibration.fixed_batch
        if fixed not in (None, 1):
            raise MeshError(
                Reason.MODEL_SHAPE_UNKNOWN,
                f"the model takes batches of exactly {fixed}; export it with a batch of 1 or one that varies",
            )
        assert work.manifest.split is not None
        self.split: SplitInfo = work.manifest.split
        self.class_output = work.manifest.class_output
        self.specs = [info.spec() for info in self.split.wire]
        self._context = context
        axes = [channel_axis(len(spec.shape)) for spec in self.specs]
        if None in axes:
            raise MeshError(Reason.CUT_INVALID, "what crosses has no channels; nothing to entropy code")
        self.axes = [axis or 1 for axis in axes]
        points = {rule.wire_tensor: rule.zero_point for rule in self.split.quantisation}
        self.zero_points = [np.array(points[spec.name], np.uint8) for spec in self.specs]
        segments = work.segments()
        self._head = open_session(segments[0], threads=context.threads)
        self.tail: Session = open_session(segments[1], threads=context.threads)
        self.fit = self.codes(context.samples.fit)
        self.channels = max(array.shape[axis] for array, axis in zip(self.fit, self.axes, strict=True))

    def close(self) -> None:
        """Give the memory back."""
        self._head.close()
        self.tail.close()

    def codes(self, rows: Rows) -> Codes:
        """What crosses for these samples, or as many of the first as fit into memory."""
        parts: list[list[NDArray[np.uint8]]] = [[] for _ in self.specs]
        held = 0
        for given in self._run(rows):
            for part, array in zip(parts, given, strict=True):
                part.append(array)
                held += array.nbytes
            if held > MAX_CODE_BYTES:
                break
        if not parts[0]:
            raise MeshError(Reason.CALIBRATION_INSUFFICIENT, "no sample to make entropy tables from")
        return [np.concatenate(part) for part in parts]

    def batches(self, rows: Rows) -> Iterator[tuple[Rows, Codes]]:
        """The same, batch by batch."""
        size = self._context.samples.calibration.fixed_batch or BATCH
        for number, given in enumerate(self._run(rows)):
            yield rows[number * size : (number + 1) * size], given

    def tables(self, rates: Sequence[Pair]) -> Tables:
        """From the fit samples."""
        return Tables.build(self.fit, self.zero_points, rates, axes=self.axes)

    def codec(self, tables: Tables) -> RangeCodec:
        """Of what crosses here."""
        return RangeCodec(tables, self.specs)

    def cut(self, arrays: Sequence[NDArray[np.uint8]]) -> Mapping[str, NDArray[np.uint8]]:
        """What the tail takes, by name."""
        return {spec.name: array for spec, array in zip(self.specs, arrays, strict=True)}

    def _run(self, rows: Rows) -> Iterator[Codes]:
        for feed in self._context.samples.feeds(rows):
            given = self._head.run(feed)
            yield [given[spec.name].astype(np.uint8, copy=False) for spec in self.specs]


def choose_rates(coder: CutCoder, context: Context, most: int, *, all_channels: bool = False) -> list[Candidate]:
    """At most ``most`` rates, the best first, by what they do to the validation samples.

    The best is the smallest that keeps the budget (half of it: the rest is for the luck of other samples), or, without
    one, loses no answer against the largest, nor is expected to lose one by how far margins moved. Each further one is
    the most faithful of those that take at most three quarters of the bytes, as long as it is still of use.
    ``all_channels``: no rate with fewer is tried.
    """
    rows = context.samples.validation[:VALIDATION_SAMPLES]
    if not len(rows):  # a handful of samples: better judged by those than not at all
        rows = context.samples.fit[:VALIDATION_SAMPLES]
    codes = coder.codes(rows)
    with closing(Original(context, coder.class_output)) as original:
        answers = original.answers(rows[: len(codes[0])])
    codes = [array[: len(answers.rows)] for array in codes]
    tried: list[Candidate] = []
    best: Candidate | None = None
    ladder = [coder.channels] if all_channels else _ladder(coder)
    for number, channels in enumerate(ladder):
        context.progress("choose the rates", 0.2 + 0.6 * number / len(ladder))
        for step in STEPS:
            found = _try(coder, answers, codes, (channels, step), best.size if best else np.inf)
            if found is None:
                continue
            tried.append(found)
            if _keeps(found, tried[0], answers, context) and (best is None or found.size < best.size):
                best = found
            if not _useful(found, tried[0], answers):
                break
    best = best or tried[0]
    _tell(tried[0], context)
    chosen = [best]
    while len(chosen) < most:
        limit = min(SMALLER * chosen[-1].size, chosen[-1].size - SAVES_BYTES)
        smaller = [found for found in tried if found.size <= limit and _useful(found, best, answers)]
        if not smaller:
            break
        chosen.append(max(smaller, key=Candidate.rank))
    return chosen


def _ladder(coder: CutCoder) -> list[int]:
    """Numbers of channels to try: halves for a bottleneck, whose channels are in order; else all of them.

    Few: at a coarse step the last channels say nothing and cost next to nothing, so leaving them out saves little more.
    """
    if coder.split.bottleneck is None:
        return [coder.channels]
    return list(dict.fromkeys(max(1, coder.channels // part) for part in (1, 2, 4)))


def _try(coder: CutCoder, answers: Answers, codes: Codes, pair: Pair, limit: float) -> Candidate | None:
    """None when it is no smaller than ``limit``."""
    codec = coder.codec(coder.tables([pair]))
    some = np.linspace(0, len(codes[0]) - 1, min(SIZED_SAMPLES, len(codes[0]))).astype(np.int64)
    size = statistics.fmean(codec.size_bytes([array[row : row + 1] for array in codes], 0) for row in some)
    if size >= limit:
        return None
    return Candidate(pair, size, answers.distance(coder.tail, coder.cut(codec.coarse(codes, 0))))


def _keeps(found: Candidate, finest: Candidate, answers: Answers, context: Context) -> bool:
    budget, mine, best = context.budget, found.distance, finest.distance
    if mine.agreed is None or best.agreed is None:
        if budget.max_output_error is not None:
            return mine.output_error <= max(0.9 * budget.max_output_error, best.output_error)
        return mine.output_error <= SLACK[0] * best.output_error + SLACK[1]
    expected, least = mine.expected or 0.0, best.expected or 0.0
    within = []
    if budget.max_disagreement is not None:
        lost = max(1 - mine.agreed / mine.samples, expected)
        within.append(lost <= HALF * budget.max_disagreement)
    if budget.max_accuracy_loss is not None and mine.right is not None and answers.right is not None:
        within.append(answers.right - mine.right <= HALF * budget.max_accuracy_loss * mine.samples)
    if within:
        return all(within)
    return mine.agreed >= best.agreed and expected <= least + HALF / mine.samples


def _tell(finest: Candidate, context: Context) -> None:
    agreement = finest.distance.agreement
    if agreement is not None and agreement < TELL_BELOW:
        lost = round((1 - agreement) * finest.distance.samples)
        context.remark(
            f"even the largest rate changes {lost} of {finest.distance.samples} validation answers; a later cut, more "
            "channels or method=trained may keep them"
        )


def _useful(found: Candidate, best: Candidate, answers: Answers) -> bool:
    mine, theirs = found.distance.agreement, best.distance.agreement
    if mine is None or theirs is None:
        return found.distance.output_error <= USEFUL_ERROR
    return mine >= USEFUL_AGREEMENT * theirs and mine > answers.commonest


def _measure(coder: CutCoder, context: Context, tables: Tables) -> tuple[list[Rate], float, float, int]:
    """Every rate on the hold-out, the times of the best one in milliseconds, and the number of samples."""
    codecs = [coder.codec(tables).at(number) for number in range(len(tables.rates))]
    sizes: list[list[int]] = [[] for _ in codecs]
    encode_s, decode_s = [], []
    totals = [Comparison() for _ in codecs]
    original = Original(context, coder.class_output)
    for rows, arrays in coder.batches(context.samples.holdout):
        answers = original.answers(rows)
        samples = [b"".join(bytes(as_bytes(array[row : row + 1])) for array in arrays) for row in range(len(rows))]
        for number, codec in enumerate(codecs):
            for sample in samples:
                began = time.perf_counter()
                payload = codec.encode(sample)
                between = time.perf_counter()
                codec.decode(payload, len(sample))
                if number == 0:
                    encode_s.append(between - began)
                    decode_s.append(time.perf_counter() - between)
                sizes[number].append(len(payload))
            answers.compare(coder.tail, coder.cut(codec.coarse(arrays, number)), totals[number])
    original.close()
    if not encode_s:
        raise MeshError(Reason.CALIBRATION_INSUFFICIENT, "no hold-out sample to measure the rates on")
    measured = []
    for (channels, step), size, total in zip(tables.rates, sizes, totals, strict=True):
        found = total.distance()
        measured.append(
            Rate(
                channels=channels,
                step=step,
                wire_bytes=statistics.fmean(size),
                agreement=found.agreement,
                output_error=found.output_error if found.agreement is None else None,
            )
        )
    return measured, 1e3 * statistics.median(encode_s), 1e3 * statistics.median(decode_s), len(encode_s)


def _goes_down(rates: Sequence[Rate], number: int) -> bool:
    return all(rate.wire_bytes > rates[number].wire_bytes for rate in rates[:number])
