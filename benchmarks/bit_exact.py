"""Is the entropy codec bit exact? Decoded by threads, by other processes, with other thread settings; then attacked.

Codes of the shipped model's cut and of three made-up kinds of cut are coded at every rate; half of the samples are
like those the tables were made from, half are any bytes at all, so that the rarest symbols occur. Everything decoded is
held against what the rate says, and every damaged payload must be refused. Sizes and times are of the samples that are
like the others, against zstd on the same bytes in the same run.

    python -m benchmarks.bit_exact [--quick]
"""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import zstandard
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from rich.progress import Progress

from benchmarks.harness import CUT, Result, arguments, publish
from examples.solder_joints.demo import SHIPPED_MODEL
from examples.solder_joints.frames import rendered_frames
from splitmesh.errors import MeshError, Reason
from splitmesh.model.artifacts import split_bytes
from splitmesh.model.manifest import HEAD, TAIL, WHOLE
from splitmesh.model.preprocess import Preprocess
from splitmesh.model.quantize import calibrate, quantise_cut
from splitmesh.runtime import open_session
from splitmesh.tensor import TensorSpec
from splitmesh.tensor.codecs import Zstd
from splitmesh.tensor.entropy import RangeCodec, Tables

Codes = NDArray[np.uint8]

THREADS = (1, 2, 8)
GOAL = "0 symbols decoded otherwise, of at least a million; every damaged payload refused"


@dataclass(frozen=True)
class Case:
    """A kind of cut."""

    name: str
    axis: int
    zero_points: Codes
    fit: Codes
    usual: Codes
    """Samples like those of the fit, which it has not seen."""
    rates: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Job:
    """What a process is given: it knows nothing else."""

    tables: bytes
    shape: tuple[int, ...]
    zero_points: bytes
    axis: int
    payloads: tuple[bytes, ...]
    threads: int


def main() -> None:
    quick = arguments(__doc__).quick
    rows = []
    with Progress(transient=True) as progress:
        task = progress.add_task("cuts", total=4)
        for case in cases(40 if quick else 400):
            rows.append(measure(case, others=20 if quick else 400, attacked=1 if quick else 4))
            progress.advance(task)
    decoded = sum(int(str(row["decoded"])) for row in rows)
    wrong = sum(int(str(row["otherwise"])) for row in rows)
    attacks = sum(int(str(row["damaged"])) for row in rows)
    taken = sum(int(str(row["taken"])) for row in rows)
    publish(
        Result(
            name="bit_exact",
            n=decoded,
            baseline="the values that the rate states, computed without coding; zstd on the same bytes",
            goal=GOAL,
            measured=f"{wrong} of {decoded:,} symbols otherwise; {taken} of {attacks:,} damaged payloads taken",
            met=wrong == 0 and taken == 0 and decoded >= 1_000_000,
            rows=rows,
        )
    )


def cases(samples: int) -> list[Case]:
    """The shipped model's cut, a map after a ReLU, tokens, and a vector."""
    random = np.random.default_rng(0)
    present = random.random((2 * samples, 48, 1, 1)) < random.uniform(0.1, 0.9, (48, 1, 1))
    relu = random.exponential(random.uniform(2, 30, (48, 1, 1)), (2 * samples, 48, 7, 7)) - 8
    points = random.integers(90, 160, 64, dtype=np.uint8)
    tokens = random.normal(points, random.uniform(2, 25, 64), (2 * samples, 49, 64))
    vector = random.laplace(128, 12, (2 * samples, 128))

    def case(name: str, axis: int, zero: Codes, values: NDArray[np.float64], *rates: tuple[int, int]) -> Case:
        codes = np.clip(np.round(values), 0, 255).astype(np.uint8)
        return Case(name, axis, zero, codes[:samples], codes[samples:], rates)

    return [
        waist(samples),
        case("ReLU 48x7x7", 1, np.array([0], np.uint8), relu * present, (48, 1), (48, 8), (24, 32)),
        case("tokens 49x64", 2, points, tokens, (64, 1), (64, 16), (16, 16)),
        case("vector 128", 1, np.array([128], np.uint8), vector, (128, 1), (64, 4), (8, 128)),
    ]


def waist(samples: int) -> Case:
    """The shipped model's, of rendered pictures."""
    preprocess = Preprocess.model_validate_json((SHIPPED_MODEL / "preprocess.json").read_bytes())
    manifest, parts = split_bytes((SHIPPED_MODEL / WHOLE).read_bytes(), [CUT])
    (taken,) = manifest.whole.inputs
    frames = rendered_frames(1, 2 * samples, preprocess, lambda _: None)
    feeds = [{taken.name: preprocess.normalise(pixels[None])} for pixels in frames.calibration]
    head, _, (rule,) = quantise_cut(
        onnx.load_model_from_string(parts[HEAD]),
        onnx.load_model_from_string(parts[TAIL]),
        calibrate(parts[HEAD], feeds[:samples]),
    )
    session = open_session(head.SerializeToString(), threads=1)
    codes = np.concatenate([session.run(feed)[rule.wire_tensor] for feed in feeds]).astype(np.uint8)
    session.close()
    channels = codes.shape[1]
    name = f"shipped {'x'.join(map(str, codes.shape[1:]))}"
    zero = np.array(rule.zero_point, np.uint8)
    rates = ((channels, 1), (channels, 4), (channels, 32), (max(1, channels // 2), 32))
    return Case(name, 1, zero, codes[:samples], codes[samples:], rates)


def measure(case: Case, *, others: int, attacked: int) -> dict[str, object]:
    """One row: mismatches, refusals, sizes at the best rate and speeds."""
    tables = Tables.build([case.fit], [case.zero_points], case.rates, axes=[case.axis])
    spec = TensorSpec("t", "uint8", (-1, *case.fit.shape[1:]))
    codec = RangeCodec(tables, [spec])
    odd = np.random.default_rng(1).integers(0, 256, (others, *case.fit.shape[1:]), np.uint8)
    samples = np.concatenate([case.usual[:others], odd])
    payloads, expected = [], []
    for rate in range(len(case.rates)):
        expected += [codec.coarse([one[None]], rate)[0].tobytes() for one in samples]
        payloads += [codec.at(rate).encode(one.tobytes()) for one in samples]
    size = math.prod(case.fit.shape[1:])

    def decode(payload: bytes) -> bytes:
        return codec.decode(payload, size)

    symbols = otherwise = 0
    for threads in THREADS:
        with ThreadPoolExecutor(threads) as pool:
            for back, wanted in zip(pool.map(decode, payloads), expected, strict=True):
                symbols += size
                otherwise += int((np.frombuffer(back, np.uint8) != np.frombuffer(wanted, np.uint8)).sum())
    job = Job(tables.to_bytes(), case.fit.shape[1:], case.zero_points.tobytes(), case.axis, tuple(payloads), 1)
    answers = [in_process(replace(job, threads=threads)) for threads in THREADS]
    wanted_digest = hashlib.sha256(b"".join(expected)).hexdigest()
    symbols += size * len(payloads) * len(answers)
    otherwise += sum(size * len(payloads) for answer in answers if answer[0] != wanted_digest)
    floats_differ = len({answer[1] for answer in answers}) > 1
    damaged, taken = attack(case, codec, payloads, size, attacked)
    return {
        "cut": case.name,
        "decoded": symbols,
        "otherwise": otherwise + int(floats_differ),
        "damaged": damaged,
        "taken": taken,
        **sizes(case, codec),
        **speeds(case, codec, size),
    }


def in_process(job: Job) -> tuple[str, str]:
    """In a new process whose libraries were told a number of threads before they were loaded."""
    kept = dict(os.environ)
    os.environ.update(
        {name: str(job.threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    )
    try:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(work, (job,))
    finally:
        os.environ.clear()
        os.environ.update(kept)


def work(job: Job) -> tuple[str, str]:
    """Digests of everything decoded, and of the floats that the tail's first node makes of it."""
    codec = RangeCodec(Tables.from_bytes(job.tables), [TensorSpec("t", "uint8", (-1, *job.shape))])
    back = b"".join(codec.decode(payload, math.prod(job.shape)) for payload in job.payloads)
    session = open_session(dequantise(job), threads=job.threads)
    (floats,) = session.run({"codes": np.frombuffer(back, np.uint8).reshape(-1, *job.shape)}).values()
    session.close()
    return hashlib.sha256(back).hexdigest(), hashlib.sha256(floats.tobytes()).hexdigest()


def dequantise(job: Job) -> bytes:
    """A graph of one DequantizeLinear."""
    points = np.frombuffer(job.zero_points, np.uint8)
    scales = np.random.default_rng(2).uniform(0.01, 0.1, len(points)).astype(np.float32)
    constants: dict[str, NDArray[Any]] = {"scale": scales, "zero": points.copy()}
    if len(points) == 1:
        constants = {name: value.reshape(()) for name, value in constants.items()}
    graph = helper.make_graph(
        [helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["floats"], axis=job.axis)],
        "dequantise",
        [helper.make_tensor_value_info("codes", TensorProto.UINT8, ["n", *job.shape])],
        [helper.make_tensor_value_info("floats", TensorProto.FLOAT, ["n", *job.shape])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(made.SerializeToString())


def attack(case: Case, codec: RangeCodec, payloads: Sequence[bytes], size: int, each: int) -> tuple[int, int]:
    """How many damaged payloads there were, and how many were not refused as such."""
    random = np.random.default_rng(3)
    others = [
        RangeCodec(Tables.build([fit], [points], case.rates, axes=[case.axis]), [TensorSpec("t", "uint8", shape)])
        for shape in [(-1, *case.fit.shape[1:])]
        for fit, points in ((case.fit[:-1], case.zero_points), (case.fit, case.zero_points ^ np.uint8(1)))
    ]
    made = taken = 0

    def tried(by: RangeCodec, data: bytes) -> None:
        nonlocal made, taken
        made += 1
        try:
            by.decode(data, size)
        except MeshError as error:
            taken += error.reason is not Reason.PAYLOAD_CORRUPT
        else:
            taken += 1

    per_rate = len(payloads) // len(case.rates)
    chosen = [rate * per_rate + step for rate in range(len(case.rates)) for step in range(each)]
    for payload in (payloads[index] for index in chosen):
        for position in range(len(payload)):
            for change in (1 << int(random.integers(8)), int(random.integers(1, 256))):
                tried(codec, payload[:position] + bytes([payload[position] ^ change]) + payload[position + 1 :])
        for kept in range(len(payload)):
            tried(codec, payload[:kept])
        for more in (b"\0", b"\1", b"\xff", bytes(4), bytes(8), random.bytes(3), payload):
            tried(codec, payload + more)
    for payload in payloads:
        for other in others:
            tried(other, payload)
        tried(codec, bytes([int(random.integers(len(case.rates)))]) + random.bytes(int(random.integers(200))))
    return made, taken


def sizes(case: Case, codec: RangeCodec) -> dict[str, object]:
    """Mean bytes of a sample: at the best rate, and at the last."""
    last = len(case.rates) - 1

    def ranged(rate: int) -> float:
        return float(np.mean([codec.size_bytes([one[None]], rate) for one in case.usual]))

    def zstd(level: int, rate: int) -> float:
        packer = zstandard.ZstdCompressor(level)
        return float(np.mean([len(packer.compress(one.tobytes())) for one in codec.coarse([case.usual], rate)[0]]))

    return {
        "range B": ranged(0),
        "entropy B": entropy(case.usual, case.axis) / len(case.usual) / 8,
        "zstd-19 B": zstd(19, 0),
        "zstd-3 B": zstd(3, 0),
        "last rate B": ranged(last),
        "its zstd-19 B": zstd(19, last),
    }


def entropy(codes: Codes, axis: int) -> float:
    """Bits of all samples with the best table for each channel of exactly these samples."""
    bits = 0.0
    for channel in np.moveaxis(codes, axis, 0):
        counts = np.bincount(channel.reshape(-1))
        counts = counts[counts > 0]
        bits -= float((counts * np.log2(counts / counts.sum())).sum())
    return bits


def speeds(case: Case, codec: RangeCodec, size: int) -> dict[str, object]:
    """Nanoseconds per value at the best rate, and how much longer than zstd-3 there and back takes."""
    plain = [one.tobytes() for one in case.usual]
    zstd = Zstd()
    ranged, packed = [codec.encode(one) for one in plain], [bytes(zstd.encode(one)) for one in plain]
    encode = best(lambda: [codec.encode(one) for one in plain])
    decode = best(lambda: [codec.decode(one, size) for one in ranged])
    both = best(lambda: [zstd.decode(bytes(zstd.encode(one)), size) for one in plain])
    values = len(plain) * size / 1e9
    return {
        "encode ns": encode / values,
        "decode ns": decode / values,
        "both us": (encode + decode) / len(plain) * 1e6,
        "zstd-3 us": both / len(packed) * 1e6,
    }


def best(call: Callable[[], object]) -> float:
    """Seconds, the shortest of five."""
    found = []
    for _ in range(5):
        begun = time.perf_counter()
        call()
        found.append(time.perf_counter() - begun)
    return min(found)


if __name__ == "__main__":
    main()
