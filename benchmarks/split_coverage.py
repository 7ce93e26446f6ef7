"""Does head + tail equal the whole at every place a model can be cut?

Every frontier of the nine "light" models of the ONNX test suite and of every network in benchmarks/architectures.py, and
every fourth of two of them in 8 bits, is split with the functions the product uses, run on several batch sizes, and
compared with the whole model's outputs. Frontiers that the product refuses are counted by reason. Both halves run as they
do in service, with the runtime's fusing on.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx

from benchmarks.architectures import ARCHITECTURES, build
from benchmarks.harness import Result, arguments, publish
from splitmesh.errors import MeshError, Reason
from splitmesh.model.cuts import frontiers, list_cuts, resolve_cut
from splitmesh.model.graph import Graph
from splitmesh.model.load import load_model
from splitmesh.model.split import split_model
from splitmesh.model.verify import EXACT_TOLERANCE, Reference, compare, random_inputs
from splitmesh.tensor.spec import Array

BATCHES = (1, 2, 5)
WIDTH, SIDE = 0.25, 64
"""Structure and number of cuts do not depend on these."""
MAX_FILLED = 12_000_000
"""Weights that a light model may be given at random; AlexNet, ResNet-50, VGG-19 and ZFNet stay above."""
CHUNK = 60
"""Cuts per task."""
QUICK_CUTS = 3
"""Cuts per model with --quick."""
QUICK_MODELS = ("light_squeezenet", "light_resnet50", "light_shufflenet", "resnet18", "mobilenet_v3", "unet", "siamese")
EIGHT_BIT = ("resnet18", "vit_tiny")
"""Networks that are cut in 8 bits (QDQ, one scale per channel) too, at every fourth frontier."""


@dataclass(slots=True)
class Tally:
    """What was seen of some cuts of one model."""

    frontiers: int = 0
    candidates: int = 0
    equal: int = 0
    rounded: int = 0
    """Of the equal: only within the tolerance for models that round inside."""
    error: float = 0.0
    tensors: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, other: Tally) -> None:
        """Take another part of the same model in."""
        self.frontiers += other.frontiers
        self.candidates += other.candidates
        self.equal += other.equal
        self.rounded += other.rounded
        self.error = max(self.error, other.error)
        self.tensors = max(self.tensors, other.tensors)
        self.refused += other.refused
        self.problems += other.problems
        self.seconds += other.seconds


def light_models() -> dict[str, Path]:
    """The ONNX test suite's models whose weights are constants, by name."""
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    return {path.stem: path for path in sorted(folder.glob("*.onnx"))}


def models() -> dict[str, Callable[[], bytes]]:
    """Every model of the benchmark: how to get its bytes."""
    found: dict[str, Callable[[], bytes]] = {name: partial(filled, path) for name, path in light_models().items()}
    found |= {name: partial(build, name, width=WIDTH, side=SIDE) for name in ARCHITECTURES}
    return found | {f"{name}_int8": partial(eight_bit, name) for name in EIGHT_BIT}


def filled(path: Path) -> bytes:
    """A light model with random weights in place of constant ones, under which every input has the same answer; the
    file as it is where they would take more than ``MAX_FILLED`` elements."""
    raw = path.read_bytes()
    model = onnx.load_model_from_string(raw)
    shapes = {init.name: onnx.numpy_helper.to_array(init) for init in model.graph.initializer}
    made = [node for node in model.graph.node if node.op_type == "ConstantOfShape" and node.input[0] in shapes]
    if sum(int(shapes[node.input[0]].prod()) for node in made) > MAX_FILLED:
        return raw
    rng = np.random.default_rng(0)
    for node in made:
        shape = tuple(int(dim) for dim in shapes[node.input[0]])
        # One dimension: a bias, or scale, shift, mean or variance of a normalisation.
        flat = len(shape) == 1
        weight = rng.uniform(0.5, 1.5, shape) if flat else rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight.astype(np.float32), node.output[0]))
        model.graph.node.remove(node)
    model.ir_version = 4  # from which on initialisers need not be inputs
    return model.SerializeToString()


def eight_bit(name: str) -> bytes:
    """A network quantised by the runtime's tools, with QuantizeLinear and DequantizeLinear pairs."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    logging.getLogger().setLevel(logging.ERROR)  # advice about graphs that nobody will deploy
    rng = np.random.default_rng(0)
    feeds: Iterator[dict[str, Array]] = iter(
        [{ARCHITECTURES[name].inputs[0]: rng.standard_normal((2, 3, SIDE, SIDE)).astype(np.float32)} for _ in range(4)]
    )

    class Feeds:
        def get_next(self) -> dict[str, Array] | None:
            return next(feeds, None)

    with TemporaryDirectory() as folder:
        source, target = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        source.write_bytes(build(name, width=WIDTH, side=SIDE))
        quantize_static(
            source,
            target,
            Feeds(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
        )
        return target.read_bytes()


def chunks(name: str, most: int | None) -> list[list[tuple[str, ...]]]:
    """The frontiers of a model in pieces; about ``most`` of them, evenly spread, when that is given."""
    graph = Graph(load_model(models()[name]()))
    places = frontiers(graph)[:: 4 if name.endswith("_int8") else 1]
    if most is not None:
        places = places[:: max(1, len(places) // most)]
    return [places[start : start + CHUNK] for start in range(0, len(places), CHUNK)]


def measure(name: str, places: list[tuple[str, ...]]) -> Tally:
    """Split at each place and compare."""
    began = time.perf_counter()
    whole = models()[name]()
    graph = Graph(load_model(whole))
    offered = {frozenset(cut.tensors) for cut in list_cuts(graph, max_tensors=10_000)}
    rng = np.random.default_rng(0)
    batches = BATCHES if graph.batch_symbol is not None else BATCHES[:1]
    reference = Reference(whole, [random_inputs(graph, batch, rng) for batch in batches])
    tally = Tally(frontiers=len(places))
    for place in places:
        try:
            cut = resolve_cut(graph, place)
        except MeshError as error:
            tally.refused[error.reason.value] += 1
            if frozenset(place) in offered:
                tally.problems.append(f"{name} at {', '.join(place)}: offered, but {error}")
            continue
        tally.candidates += 1
        tally.tensors = max(tally.tensors, len(place))
        try:
            split = split_model(graph, cut)
            found = compare(reference, [split.head.SerializeToString(), split.tail.SerializeToString()])
        except MeshError as error:
            if error.reason is not Reason.SPLIT_NOT_EQUAL:
                tally.refused[error.reason.value] += 1
            tally.problems.append(f"{name} at {', '.join(place)}: {error}")
            continue
        tally.equal += 1
        tally.rounded += found.tolerance is not None and found.tolerance > EXACT_TOLERANCE
        tally.error = max(tally.error, found.max_abs_error)
    tally.seconds = time.perf_counter() - began
    return tally


def row(name: str, tally: Tally) -> dict[str, object]:
    """One line of the table."""
    return {
        "model": name,
        "frontiers": tally.frontiers,
        "candidates": tally.candidates,
        "equal": tally.equal,
        "within_rounding": tally.rounded,
        "refused": ", ".join(f"{reason} {count}" for reason, count in sorted(tally.refused.items())) or "-",
        "largest_error": f"{tally.error:.1e}",
        "tensors_at_most": tally.tensors,
        "cpu_s": tally.seconds,
    }


def main() -> None:
    """Run and publish."""
    quick = arguments(__doc__).quick
    names = QUICK_MODELS if quick else tuple(models())
    tallies: dict[str, Tally] = {name: Tally() for name in names}
    began = time.perf_counter()
    # Spawned: a forked child of a process in which torch or the runtime has threads may hang.
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        listed = pool.map(chunks, names, [QUICK_CUTS if quick else None] * len(names))
        tasks = [(name, piece) for name, pieces in zip(names, listed, strict=True) for piece in pieces]
        for (name, _), tally in zip(tasks, pool.map(measure, *zip(*tasks, strict=True)), strict=True):
            tallies[name].add(tally)
    total = Tally()
    for tally in tallies.values():
        total.add(tally)
    for problem in total.problems:
        print(problem)
    took = time.perf_counter() - began
    publish(
        Result(
            name="split_coverage",
            n=total.frontiers,
            baseline="the whole model on the same inputs",
            goal=f"every candidate equal within {EXACT_TOLERANCE:g} of the output's largest magnitude",
            measured=f"{total.equal} of {total.candidates} candidates equal ({total.rounded} of them, in 8-bit models, only "
            f"with the runtime's fusing off), {total.frontiers - total.candidates} frontiers refused, {took:.0f} s",
            met=total.equal == total.candidates and not total.problems,
            rows=[row(name, tally) for name, tally in tallies.items()],
        )
    )


if __name__ == "__main__":
    main()
