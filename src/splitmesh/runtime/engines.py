"""Where TensorRT's engines are kept: one folder for each model on each device with each version of the libraries.

An engine is made for one device by one version of TensorRT and takes minutes to make. Whatever it depends on is in the
folder's name, so that a host that was changed makes a new one and never loads an old one. onnxruntime writes and reads
the files; this module only says where, and removes the folders unused for longest. Not verified on a GPU.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import onnxruntime

log = logging.getLogger(__name__)

MAX_ENGINES = 16
"""Folders kept; an engine is about as large as its model."""
UNKNOWN = "unknown"
_NAME_BYTES = 256
_TENSORRT_LIBRARIES = ("libnvinfer.so.10", "libnvinfer.so.11", "libnvinfer.so.8", "libnvinfer.so")

Library = Callable[[str], ctypes.CDLL]


def engine_folder(root: Path, model: bytes, *, options: str, most: int = MAX_ENGINES) -> Path:
    """The folder for this model's engines on this host, made if needed; the oldest beyond ``most`` are removed.

    Args:
        root: where all folders are; only this module writes there.
        model: the serialised model.
        options: what else the engine depends on, such as precision and batch sizes.
        most: folders kept, this one included.
    """
    folder = root / engine_key(model, device=device_text(), tensorrt=tensorrt_text(), options=options)
    folder.mkdir(parents=True, exist_ok=True)
    os.utime(folder)
    others = sorted((path for path in root.iterdir() if path.is_dir() and path != folder), key=_last_used)
    for old in others[: max(0, len(others) + 1 - most)]:
        log.info("the engines in %s were unused for longest and are removed", old)
        shutil.rmtree(old, ignore_errors=True)
    return folder


def _last_used(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:  # another process has just removed it
        return 0.0


def engine_key(model: bytes, *, device: str, tensorrt: str, options: str) -> str:
    """The folder's name: 32 hexadecimal digits of everything that an engine depends on."""
    depends = [hashlib.sha256(model).hexdigest(), device, tensorrt, onnxruntime.__version__, options]
    return hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:32]


def forget_engines(folder: Path) -> None:
    """Remove what is in the folder: an engine written half when the power went cannot be read again."""
    for path in folder.iterdir():
        with suppress(OSError):
            path.unlink()


@cache
def device_text() -> str:
    """The first GPU's name, compute capability and the driver's version, by the driver itself."""
    return _device_of(ctypes.CDLL)


@cache
def tensorrt_text() -> str:
    """TensorRT's version as its library says it."""
    return _tensorrt_of(ctypes.CDLL)


def _device_of(load: Library) -> str:
    """``NVIDIA L4, 8.9, driver 12040``; ``UNKNOWN`` without a driver (CUDA driver API: cuDeviceGetName and others)."""
    try:
        driver = load("libcuda.so.1")
    except OSError:
        return UNKNOWN
    device, major, minor, version = (ctypes.c_int() for _ in range(4))
    name = ctypes.create_string_buffer(_NAME_BYTES)
    failed = (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(device), 0)
        or driver.cuDeviceGetName(name, _NAME_BYTES, device)
        or driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device)  # COMPUTE_CAPABILITY_MAJOR
        or driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)  # COMPUTE_CAPABILITY_MINOR
        or driver.cuDriverGetVersion(ctypes.byref(version))
    )
    if failed:
        return UNKNOWN
    return f"{name.value.decode(errors='replace')}, {major.value}.{minor.value}, driver {version.value}"


def _tensorrt_of(load: Library) -> str:
    for library in _TENSORRT_LIBRARIES:
        with suppress(OSError, AttributeError):
            return str(load(library).getInferLibVersion())
    return UNKNOWN
