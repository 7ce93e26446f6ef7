"""What is installed on this host that computes segments, with which numbers, and why the rest cannot be used.

A back end counts only when it was seen to work: libraries are there without a device as often as not. Looking loads the
libraries, which takes seconds and memory; :mod:`splitmesh.runtime.host` says how to have that done in a child process.
Chooses nothing. CUDA, TensorRT and OpenVINO's GPU and NPU were tried only where they are missing.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from splitmesh.errors import MeshError
from splitmesh.runtime.ov import keep_quiet
from splitmesh.runtime.providers import CUDA, TENSORRT, usable

Import = Callable[[str], Any]

FP32, FP16, BF16, INT8 = "fp32", "fp16", "bf16", "int8"


@dataclass(frozen=True, slots=True)
class BackendFacts:
    """One back end on this host."""

    name: str
    """Such as onnxruntime-cpu, onnxruntime-cuda, openvino-cpu, tensorrt."""
    version: str
    precisions: tuple[str, ...] = ()
    """Numbers it computes with here; int8 where the segment itself is rounded."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Other numbers, and why not."""
    unusable: str = ""
    """Why nothing can be computed with it; empty: something can."""


def find_backends(load: Import = importlib.import_module) -> tuple[BackendFacts, ...]:
    """All that are installed; what is not is left out."""
    found: list[BackendFacts] = []
    for look in (_onnxruntime, _openvino, _tensorrt):
        found += look(load)
    return tuple(found)


def _onnxruntime(load: Import) -> list[BackendFacts]:
    try:
        module = load("onnxruntime")
        version, available = str(module.__version__), list(module.get_available_providers())
    except Exception as error:  # a broken installation raises whatever its libraries do
        return _broken("onnxruntime-cpu", "onnxruntime", error)
    no_half = "onnxruntime's CPU kernels convert each number to fp32 and back"
    found = [BackendFacts("onnxruntime-cpu", version, (FP32, INT8), {FP16: no_half, BF16: no_half})]
    for name, provider in (("onnxruntime-cuda", CUDA), ("onnxruntime-tensorrt", TENSORRT)):
        if provider not in available:
            continue
        if usable(provider):
            found.append(BackendFacts(name, version, (FP32, FP16, INT8)))
        else:
            why = "is in this onnxruntime and computes nothing here: no device, or libraries are missing"
            found.append(BackendFacts(name, version, unusable=f"{provider} {why}"))
    return found


def _openvino(load: Import) -> list[BackendFacts]:
    keep_quiet()
    try:
        module = load("openvino")
        core = module.Core()
        version = str(getattr(module, "__version__", "")) or _release("openvino")
        devices = [str(device) for device in core.available_devices]
    except ModuleNotFoundError as error:
        # Not installed is no fact about the host; installed with something missing is.
        return [] if error.name == "openvino" else _broken("openvino-cpu", "openvino", error)
    except Exception as error:
        return _broken("openvino-cpu", "openvino", error)
    if not devices:
        return [BackendFacts("openvino-cpu", version, unusable="OpenVINO finds no device here")]
    return [_openvino_device(core, device, version) for device in devices]


def _openvino_device(core: Any, device: str, version: str) -> BackendFacts:
    name = f"openvino-{device.lower()}"
    try:
        says = {str(one) for one in core.get_property(device, "OPTIMIZATION_CAPABILITIES")}
    except Exception as error:
        return BackendFacts(name, version, unusable=f"{device} does not say what it computes: {_words(error)}")
    names = {FP32: "FP32", FP16: "FP16", BF16: "BF16", INT8: "INT8"}
    can = tuple(precision for precision, word in names.items() if word in says)
    return BackendFacts(
        name,
        version,
        can,
        {one: f"OpenVINO does not count {names[one]} among what {device} does here" for one in names if one not in can},
        "" if can else f"{device} computes with none of {', '.join(names.values())}",
    )


def _tensorrt(load: Import) -> list[BackendFacts]:
    try:
        module = load("tensorrt")
        version = str(module.__version__)
        builder = module.Builder(module.Logger(module.Logger.ERROR))
    except ModuleNotFoundError as error:
        return [] if error.name == "tensorrt" else _broken("tensorrt", "tensorrt", error)
    except Exception as error:
        return _broken("tensorrt", "tensorrt", error)
    quick = {FP16: "platform_has_fast_fp16", INT8: "platform_has_fast_int8"}
    can = [FP32, *(precision for precision, name in quick.items() if getattr(builder, name, False))]
    return [
        BackendFacts(
            "tensorrt",
            version,
            tuple(can),
            {one: "TensorRT says that it is not quick on this device" for one in quick if one not in can},
        )
    ]


def _broken(name: str, package: str, error: Exception) -> list[BackendFacts]:
    return [BackendFacts(name, _release(package), unusable=f"{package} cannot be loaded: {_words(error)}")]


def _release(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _words(error: Exception) -> str:
    """The first line, without what a library adds below it."""
    text = error.message if isinstance(error, MeshError) else str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0][:200]
