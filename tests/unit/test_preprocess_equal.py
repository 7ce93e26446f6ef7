"""Training and edge see the same: what a trainer loads of a picture is bit for bit what a head computes of its bytes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image

from edge.head.active import ActiveModel
from edge.head.messages import frame_from_message
from edge.head.perceive import perceive
from splitmesh.api.inference.v1 import inference_pb2 as pb
from splitmesh.client.registry import VersionInfo
from splitmesh.datasets.freeze import freeze_items
from splitmesh.datasets.item import item_of
from splitmesh.datasets.loading import load
from splitmesh.model.manifest import Manifest, SegmentInfo, TensorInfo
from splitmesh.model.preprocess import Preprocess
from splitmesh.runtime import open_session
from splitmesh.tensor import TensorLimits
from tests.unit.dataset_items import encoded, scene

WIDTH, HEIGHT = 331, 207
"""Odd, so that halves and quarters are rounded."""


def deep(image: Image.Image) -> Image.Image:
    """16 bits of grey."""
    return Image.fromarray(np.asarray(image.convert("L"), dtype=np.uint16) * 257 + 13)


def photo(mode: str = "RGB") -> Image.Image:
    """Soft shapes with fine grain, so that any other resampling gives other pixels."""
    grain = np.random.default_rng(3).integers(-30, 30, (HEIGHT, WIDTH, 3))
    soft = np.asarray(scene(1, width=WIDTH, height=HEIGHT, mode="RGB"), dtype=np.int64)
    return Image.fromarray(np.clip(soft + grain, 0, 255).astype(np.uint8)).convert(mode)


PICTURES: dict[str, Callable[[], bytes]] = {
    "jpeg 4:4:4": lambda: encoded(photo(), "JPEG", quality=88, subsampling=0),
    "jpeg 4:2:2": lambda: encoded(photo(), "JPEG", quality=88, subsampling=1),
    "jpeg 4:2:0": lambda: encoded(photo(), "JPEG", quality=88, subsampling=2),
    "jpeg grey": lambda: encoded(photo("L"), "JPEG", quality=88),
    "jpeg cmyk": lambda: encoded(photo("CMYK"), "JPEG", quality=88),
    "jpeg progressive": lambda: encoded(photo(), "JPEG", quality=88, progressive=True),
    "png colour": lambda: encoded(photo()),
    "png grey": lambda: encoded(photo("L")),
    "png palette": lambda: encoded(photo("P")),
    "png alpha": lambda: encoded(photo("RGBA")),
    "png 16 bit": lambda: encoded(deep(photo())),
    "png 1 bit": lambda: encoded(photo("1")),
    "webp lossy": lambda: encoded(photo(), "WEBP", quality=80),
    "webp lossless": lambda: encoded(photo("RGBA"), "WEBP", lossless=True),
    "bmp": lambda: encoded(photo(), "BMP"),
    "tiff": lambda: encoded(photo(), "TIFF"),
}
WAYS = [
    Preprocess.model_validate({**colours, "width": width, "height": height, "resize": resize, "decode": decode})
    for colours, resize, decode, (width, height) in itertools.product(
        [
            {"mode": "RGB", "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
            {"mode": "L", "mean": (0.5,), "std": (0.25,)},
        ],
        ["stretch", "centre_crop"],
        ["full", "scaled"],
        [(40, 24), (WIDTH, HEIGHT), (64, 96)],
    )
]


class Kept:
    """One picture."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, digest: str) -> bytes:
        return self._data


def at_the_edge(data: bytes, preprocess: Preprocess) -> NDArray[Any]:
    """What the model of a head is given: the model gives its input back."""
    shape = [1, preprocess.channels, preprocess.height, preprocess.width]
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "same", tensors[:1], tensors[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()
    info = {name: TensorInfo(name=name, dtype="float32", shape=tuple(shape)) for name in "xy"}
    whole = SegmentInfo(artifact="model.onnx", inputs=(info["x"],), outputs=(info["y"],))
    version = VersionInfo("same", 1, 0, {}, "push", "", (), datetime(2026, 1, 1, tzinfo=UTC))
    manifest = Manifest(task="raw", whole=whole, preprocess=preprocess)
    active = ActiveModel(version, manifest, open_session(model), None)
    request = frame_from_message(pb.InferRequest(image=data), [data])
    seen = perceive(active, request, max_pixels=1 << 20, limits=TensorLimits(), codec="zstd")
    return np.asarray(seen.outputs["y"])


@pytest.mark.parametrize("kind", PICTURES)
def test_a_trainer_gets_the_array_that_a_head_computes(kind: str) -> None:
    data = PICTURES[kind]()
    dataset = freeze_items([item_of(data, label="good")], seed=1, shares={"train": 1})
    arrays: set[bytes] = set()
    for preprocess in WAYS:
        (loaded,) = load(dataset, Kept(data), "train", preprocess)
        edge = at_the_edge(data, preprocess)
        assert loaded.array.dtype == edge.dtype == np.float32
        assert loaded.array[None].shape == edge.shape
        assert loaded.array.tobytes() == edge.tobytes(), preprocess
        assert np.ptp(edge) > 0
        arrays.add(edge.tobytes())
    assert len(arrays) >= len(WAYS) // 3, "the options must make a difference, or nothing was compared"
