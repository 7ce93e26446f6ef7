"""What sending a trained bottleneck's code costs the edge: head, encoder and entropy coding, against the head alone and
against compressing the picture itself.

    python -m benchmarks.encode_cost [--quick]

One thread. The networks of 224 x 224 have random weights and an untrained encoder: times are those of a trained one (the
arithmetic is the same, and an untrained code is the longer one to code), sizes and answers would mean nothing and are
not shown. Decoding, resizing and normalising the picture are the same in every row and left out.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

import numpy as np
import onnx
import onnx.shape_inference
import onnx.utils
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.architectures import build
from benchmarks.harness import Result, arguments, publish
from benchmarks.pictures import TEST_SEED, natural_pictures
from examples.solder_joints.demo import SHIPPED_MODEL
from splitmesh.compress.train.bottleneck import CHANNELS
from splitmesh.compress.train.bottleneck_export import export_encoder
from splitmesh.compress.train.bottleneck_network import ZERO_POINT, channel_axis, make_codec
from splitmesh.runtime import open_session
from splitmesh.tensor.entropy import RangeCodec, Tables
from splitmesh.tensor.spec import TensorSpec

GOAL_MS = 15.0
"""Head, encoder and entropy coding of one colour picture of 224 x 224."""


@dataclass(frozen=True, slots=True)
class Case:
    """A head to put an encoder behind."""

    name: str
    model: Callable[[], bytes]
    side: int
    colours: int
    sides: int
    """Height of the feature maps to cut at: the last such maps before they shrink again."""


CASES = (
    Case("MobileNetV2, 224, cut at 56 x 56", lambda: build("mobilenet_v2"), 224, 3, 56),
    Case("MobileNetV2, 224, cut at 28 x 28", lambda: build("mobilenet_v2"), 224, 3, 28),
    Case("ResNet-18 of half width, 224, cut at 56 x 56", lambda: build("resnet18", width=0.5), 224, 3, 56),
    Case("SolderNet, 128, cut at 16 x 16", lambda: (SHIPPED_MODEL / "model.onnx").read_bytes(), 128, 1, 16),
)


def head_of(data: bytes, sides: int) -> tuple[bytes, str]:
    """The head up to the last of the tensors of that height that alone leads on, and the tensor's name."""
    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(data))
    heights = {
        info.name: info.type.tensor_type.shape.dim[2].dim_value
        for info in model.graph.value_info
        if len(info.type.tensor_type.shape.dim) == 4
    }
    chosen = ""
    for position in range(len(model.graph.node)):
        needed = {name for later in model.graph.node[position + 1 :] for name in later.input}
        made = {name for earlier in model.graph.node[: position + 1] for name in earlier.output}
        crossing = (needed & made) | (needed & {entry.name for entry in model.graph.input})
        if len(crossing) == 1 and heights.get(next(iter(crossing))) == sides:
            (chosen,) = crossing
    head = onnx.utils.Extractor(model).extract_model([entry.name for entry in model.graph.input], [chosen])
    return head.SerializeToString(), chosen


def median_ms(run: Callable[[int], object], repeats: int) -> float:
    """Of single runs, after three that do not count; the run gets its number."""
    for number in range(3):
        run(number)
    times = []
    for number in range(repeats):
        started = time.perf_counter()
        run(number)
        times.append(time.perf_counter() - started)
    return float(np.median(times) * 1000)


def written(picture: NDArray[np.uint8], kind: str, quality: int) -> bytes:
    """The picture ``[side, side, 1 or 3]`` as a file."""
    file = io.BytesIO()
    Image.fromarray(picture if picture.shape[2] == 3 else picture[..., 0]).save(file, kind, quality=quality)
    return file.getvalue()


def measured(case: Case, repeats: int) -> dict[str, object]:
    """One row."""
    pictures = natural_pictures(8, case.side, TEST_SEED)
    if case.colours == 1:
        pictures = pictures.mean(3, keepdims=True).astype(np.uint8)
    inputs = [np.ascontiguousarray((p[None].transpose(0, 3, 1, 2) / 255 - 0.45) / 0.25, np.float32) for p in pictures]
    data, tensor = head_of(case.model(), case.sides)
    with ExitStack() as stack:
        head = stack.enter_context(closing(open_session(data)))
        name = head.inputs[0].name
        features = torch.from_numpy(np.concatenate([head.run({name: x})[tensor] for x in inputs]))
        shape = tuple(features.shape[1:])
        torch.manual_seed(0)
        flat = features.movedim(channel_axis(shape), 0).flatten(1)
        codec = make_codec(shape, min(CHANNELS, shape[0]), flat.mean(1), flat.std(1).clamp(min=1e-3), False)
        codec.encoder.settle(features)
        encoder = stack.enter_context(
            closing(open_session(export_encoder(codec.encoder, features).SerializeToString()))
        )
        [given], [result] = encoder.inputs, encoder.outputs

        def encoded(x: NDArray[np.float32]) -> NDArray[np.uint8]:
            code = encoder.run({given.name: head.run({name: x})[tensor]})[result.name]
            levels: NDArray[np.uint8] = np.clip(np.rint(code) + ZERO_POINT, 0, 255).astype(np.uint8)
            return levels

        codes = [encoded(x) for x in inputs]
        tables = Tables.build(
            [np.concatenate(codes)],
            [np.array([ZERO_POINT], np.uint8)],
            rates=[(codes[0].shape[1], 1)],
            axes=[1],
        )
        coder = RangeCodec(tables, [TensorSpec(result.name, "uint8", (1, *codes[0].shape[1:]))])
        count = len(inputs)
        head_ms = median_ms(lambda number: head.run({name: inputs[number % count]}), repeats)
        coding_ms = median_ms(lambda number: coder.encode(codes[number % count].tobytes()), repeats)
        all_ms = median_ms(lambda number: coder.encode(encoded(inputs[number % count]).tobytes()), repeats)
        jpeg_ms = median_ms(lambda number: written(pictures[number % count], "JPEG", 90), repeats)
        webp_ms = median_ms(lambda number: written(pictures[number % count], "WEBP", 80), repeats)
    return {
        "case": case.name,
        "code": "x".join(str(size) for size in codes[0].shape[1:]),
        "head_ms": head_ms,
        "head_encoder_coding_ms": all_ms,
        "of_it_coding_ms": coding_ms,
        "added_share_of_head": all_ms / head_ms - 1,
        "jpeg_q90_ms": jpeg_ms,
        "webp_q80_ms": webp_ms,
        "added_over_webp": (all_ms - head_ms) / webp_ms,
    }


def main(cases: Sequence[Case] = CASES) -> None:
    quick = arguments(__doc__).quick
    torch.set_num_threads(1)
    repeats = 15 if quick else 100
    rows = [measured(case, repeats) for case in cases]
    large = {
        str(row["case"]): float(str(row["head_encoder_coding_ms"])) for row in rows if ", 224," in str(row["case"])
    }
    publish(
        Result(
            name="encode_cost",
            n=repeats,
            baseline="the head alone; JPEG q90 and WebP q80 of the same pictures (Pillow)",
            goal=f"head, encoder and entropy coding of a 224 x 224 picture within {GOAL_MS:.0f} ms on one thread",
            measured="; ".join(f"{case} {value:.1f} ms" for case, value in large.items()),
            met=all(value <= GOAL_MS for value in large.values()),
            rows=rows,
        )
    )


if __name__ == "__main__":
    main()
