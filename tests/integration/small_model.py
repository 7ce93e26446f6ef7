"""A classifier of 16 x 16 pictures that needs no training, its pictures, and a control plane to put it through.

Class 0 has horizontal stripes, class 1 vertical ones, class 2 none; faint stripes are hard.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from services.registry.app import build as build_registry
from services.registry.config import RegistrySettings
from splitmesh.client.registry import RegistryClient, VersionInfo
from splitmesh.kernel.channels import Channels
from splitmesh.kernel.discovery_static import StaticDiscovery
from splitmesh.kernel.lifecycle import Host
from splitmesh.model.calibration import pack_calibration
from splitmesh.model.manifest import CALIBRATION, MANIFEST, WHOLE, Manifest, SegmentInfo, TensorInfo
from splitmesh.model.preprocess import Preprocess

SIDE = 16
LABELS = ("horizontal", "vertical", "plain")
CUT = "edges"
"""The tensor after the first convolution."""


def small_model(channels: int = 8, *, note: str = "") -> bytes:
    """Stripe filters, ReLU, pooling, a mixing convolution, global pooling, three logits; ``note`` makes other bytes."""
    filters = np.random.default_rng(1).normal(0, 0.05, (channels, 1, 3, 3)).astype(np.float32)
    gradient = np.array([[1, 1, 1], [0, 0, 0], [-1, -1, -1]], dtype=np.float32) / 3
    filters[0, 0], filters[1, 0] = gradient, gradient.T
    mix = np.random.default_rng(2).normal(0, 0.02, (channels, channels, 3, 3)).astype(np.float32)
    mix[0, 0, 1, 1] = mix[1, 1, 1, 1] = 1.0
    score = np.zeros((channels, 3), dtype=np.float32)
    score[0], score[1] = (40, -40, -20), (-40, 40, -20)
    weights = {"w1": filters, "w2": mix, "w3": score, "b3": np.array([0, 0, 2], dtype=np.float32)}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], [CUT]),
        helper.make_node("MaxPool", [CUT], ["pooled"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["pooled", "w2"], ["c2"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["mixed"]),
        helper.make_node("GlobalAveragePool", ["mixed"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w3", "b3"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
        doc_string=note,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def small_pictures(n: int, seed: int = 0) -> NDArray[np.uint8]:
    """uint8 ``[n, 16, 16, 1]``, the classes in turn."""
    rng = np.random.default_rng(seed)
    wave = np.sin(np.arange(SIDE) * np.pi / 2)
    pictures = rng.normal(128, 4, (n, SIDE, SIDE))
    strength = rng.uniform(4, 60, n)
    for index in range(n):
        if index % 3 == 0:
            pictures[index] += strength[index] * wave[:, None]
        elif index % 3 == 1:
            pictures[index] += strength[index] * wave[None, :]
    return pictures.clip(0, 255).astype(np.uint8)[..., None]


def small_manifest() -> Manifest:
    """Of the whole model."""
    return Manifest(
        task="classification",
        labels=LABELS,
        preprocess=Preprocess(width=SIDE, height=SIDE, mode="L", mean=(0.5,), std=(0.25,)),
        whole=SegmentInfo(
            artifact=WHOLE,
            inputs=(TensorInfo(name="x", dtype="float32", shape=(-1, 1, SIDE, SIDE)),),
            outputs=(TensorInfo(name="logits", dtype="float32", shape=(-1, 3)),),
        ),
    )


async def push_small(
    registry: RegistryClient, model: str, *, samples: int = 0, artifacts: dict[str, bytes] | None = None
) -> VersionInfo:
    """Registers the small model, with so many calibration pictures; another name makes other bytes and so own profiles."""
    parts = {WHOLE: small_model(note=model), MANIFEST: small_manifest().to_json().encode()}
    if samples:
        parts[CALIBRATION] = pack_calibration(small_pictures(samples))
    return await registry.create_version(model, parts | (artifacts or {}), created_by="push")


@dataclass(frozen=True)
class ControlPlane:
    """A registry that runs, and room for more services."""

    registry: RegistryClient
    registry_host: Host
    folder: Path
    stack: AsyncExitStack

    @property
    def addresses(self) -> str:
        """For the setting ``static_addresses`` of another service."""
        return f"registry={self.registry_host.address}"

    def channels(self, **services: str) -> Channels:
        """To these services by address; closed at the end."""
        channels = Channels(StaticDiscovery({name: [address] for name, address in services.items()}))
        self.stack.push_async_callback(channels.close)
        return channels


@asynccontextmanager
async def control_plane(folder: Path) -> AsyncIterator[ControlPlane]:
    """A registry on a free port with its state in ``folder``."""
    async with AsyncExitStack() as stack:
        settings = RegistrySettings(data_dir=folder / "registry", drain_s=1.0)
        host = await stack.enter_async_context(Host("registry", settings, build_registry))
        channels = Channels(StaticDiscovery({"registry": [host.address]}))
        stack.push_async_callback(channels.close)
        yield ControlPlane(RegistryClient(channels), host, folder, stack)


def tensors_of(model: bytes) -> tuple[list[str], list[str]]:
    """Names of the inputs and outputs of a serialised model."""
    graph = onnx.load_model_from_string(model).graph
    return [value.name for value in graph.input], [value.name for value in graph.output]
