"""What computes a segment: TensorRT, CUDA or the CPU, whichever is wanted and really works.

onnxruntime goes on with the CPU, without an error, where a provider's libraries or device are missing; some builds list
providers that compute nothing at all. So a provider counts only when it was seen to take part of a tiny model, and a model
goes to one only when it takes part of that and its answers on made-up inputs are the CPU's, within ``TOLERANCE``.

Knows no model formats and no settings of services. The choice, the checks and the cache were tested on hosts without a GPU,
with onnxruntime and with onnxruntime-gpu: CUDA and TensorRT at work are **not verified on a GPU**.
"""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Mapping, Sequence
from contextlib import closing, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime

from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.runtime.answers import distance
from splitmesh.runtime.engines import engine_folder, forget_engines
from splitmesh.runtime.inputs import random_feed
from splitmesh.runtime.ort import CPU, OrtSession
from splitmesh.runtime.precision import has_half_weights
from splitmesh.runtime.session import Session
from splitmesh.tensor.spec import TensorSpec

log = logging.getLogger(__name__)

Wish = Literal["auto", "cpu", "cuda", "tensorrt"]
"""What an operator may ask for."""

CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
BY_WISH = {"cpu": CPU, "cuda": CUDA, "tensorrt": TENSORRT}
TOLERANCE = 0.02
"""Of an output's largest magnitude: other kernels add in another order, and a value rounded to 8 bits may move a step."""
COMPARED_SAMPLES = 2

PROBE = base64.b64decode(
    "CAgSADphChEKAXgKAXcSAXkiBk1hdE11bBIFcHJvYmUqGwgCCAIQAUIBd0oQAACAPwAAAEAAAEBAAACAQFoTCgF4Eg4KDAgBEggKAggBCgIIAm"
    "ITCgF5Eg4KDAgBEggKAggBCgIIAkIECgAQDQ=="
)
"""``y = x @ w`` with ``w = [[1, 2], [3, 4]]``: what every provider that computes anything can compute."""


@dataclass(frozen=True, slots=True)
class Compute:
    """Where a node's segments are to be computed."""

    wish: Wish = "auto"
    engines: Path | None = None
    """Folder for TensorRT's engines; None: they are made anew for each session."""
    max_batch: int = 1
    """Largest batch that will come; TensorRT makes its engine for 1 up to so many samples."""
    gpu_bytes: int = 0
    """Most GPU memory that one session's arena may take; 0: no limit of ours."""


def choose(wish: Wish, available: Sequence[str]) -> tuple[str, ...]:
    """Providers to try, best first.

    Args:
        wish: ``auto`` is TensorRT, CUDA and at last the CPU, as far as this build has them; the others are one and no
            other: who asks for a GPU by name shall not compute on the CPU unseen.
        available: what the build of onnxruntime has.

    Raises MeshError FIELD_INVALID when the one asked for is not in this build.
    """
    if wish == "auto":
        return tuple(name for name in (TENSORRT, CUDA, CPU) if name in available)
    name = BY_WISH.get(wish)
    if name is None:
        raise field_error("providers", f"is {wish!r}, expected auto, {', '.join(BY_WISH)}")
    if name not in available:
        raise field_error(
            "providers",
            f"asks for {wish}, and this onnxruntime has only {', '.join(available)}; in place of the package onnxruntime "
            "install onnxruntime-gpu",
        )
    return (name,)


def preferred(wish: Wish) -> str:
    """The provider that this node computes with, where a model allows it: the first that works.

    Raises MeshError FIELD_INVALID as :func:`choose`, EXTRA_MISSING when the one asked for by name does not work.
    """
    for name in choose(wish, onnxruntime.get_available_providers()):
        if name == CPU or usable(name):
            return name
    raise MeshError(Reason.EXTRA_MISSING, f"{wish} was asked for and does not work on this host; the log says why")


@cache
def usable(name: str) -> bool:
    """Whether a provider really computes here; says why not, once, in the log."""
    feed = {"x": np.array([[1.0, 1.0]], np.float32)}
    if name in (CUDA, TENSORRT):
        _load_libraries()
    try:
        with closing(OrtSession(PROBE, providers=[(name, _options(name, Compute(), None))], max_run_s=60.0)) as session:
            if name not in session.providers:
                log.warning(
                    "%s is in this onnxruntime but computes nothing here: no device, or libraries missing", name
                )
                return False
            answer = session.run(feed)["y"]
    except MeshError as error:
        log.warning("%s is in this onnxruntime but does not work here: %s", name, error.message)
        return False
    if not np.allclose(answer, [[4.0, 6.0]], rtol=1e-2):
        log.error("%s computes %s where 4 and 6 are right: it is not used", name, answer.tolist())
        return False
    return True


def _load_libraries() -> None:
    """Those of CUDA that are installed as Python packages; otherwise the system's loader has to find them."""
    preload = getattr(onnxruntime, "preload_dlls", None)
    if preload is not None:
        with redirect_stdout(io.StringIO()) as said:
            preload()
        log.info("libraries of CUDA: %s", " ".join(said.getvalue().split()) or "loaded")


def open_on(model: bytes, compute: Compute, *, threads: int = 1, max_run_s: float | None = None) -> Session:
    """A session on the best provider that works for this model.

    Under ``auto`` a provider that does not is named in the log and the next one is taken. Raises what
    :class:`OrtSession` raises, MeshError FIELD_INVALID and EXTRA_MISSING as :func:`preferred`, and
    MODEL_OPERATOR_UNSUPPORTED when the one provider asked for takes no part of the model or answers otherwise than the CPU.
    """
    best = preferred(compute.wish)
    candidates = choose(compute.wish, onnxruntime.get_available_providers())
    for name in candidates[candidates.index(best) :]:
        if name == CPU:
            break
        if name != best and not usable(name):
            continue
        try:
            return _open_checked(model, name, compute, threads, max_run_s)
        except MeshError as error:
            if compute.wish != "auto":
                raise
            log.warning("%s is not used for this model: %s", name, error.message)
    return OrtSession(model, threads=threads, max_run_s=max_run_s)


def _open_checked(model: bytes, name: str, compute: Compute, threads: int, max_run_s: float | None) -> Session:
    with closing(OrtSession(model, threads=threads, max_run_s=max_run_s)) as reference:
        specs = reference.inputs
        folder = None
        if name == TENSORRT and compute.engines is not None:
            options_text = f"{has_half_weights(model)} {compute.max_batch}"
            try:
                folder = engine_folder(compute.engines, model, options=options_text)
            except OSError as error:
                log.warning("engines cannot be kept in %s and are built at each start: %s", compute.engines, error)
        options = _options(name, compute, folder, specs, half=has_half_weights(model))
        session = _open_or_mend(model, name, options, folder, threads, max_run_s)
        try:
            if name not in session.providers:
                raise MeshError(Reason.MODEL_OPERATOR_UNSUPPORTED, f"{name} takes no part of this model")
            _require_same_answers(session, reference, name, COMPARED_SAMPLES if compute.max_batch > 1 else 1)
        except BaseException:
            session.close()
            raise
        return session


def _open_or_mend(
    model: bytes, name: str, options: Mapping[str, str], folder: Path | None, threads: int, max_run_s: float | None
) -> OrtSession:
    def opened() -> OrtSession:
        return OrtSession(model, threads=threads, providers=[(name, options)], max_run_s=max_run_s)

    try:
        return opened()
    except MeshError as error:
        if error.reason is not Reason.MODEL_CORRUPT or folder is None or not any(folder.iterdir()):
            raise
        log.warning("the engines in %s cannot be used and are made anew: %s", folder, error.message)
        forget_engines(folder)
        return opened()


def _require_same_answers(session: Session, reference: Session, name: str, samples: int) -> None:
    batch = samples if all(spec.shape[:1] == (-1,) for spec in reference.inputs) else 1
    try:
        feed = random_feed(reference.inputs, batch, np.random.default_rng(0))
    except MeshError as error:
        log.warning("the answers of %s cannot be compared with the CPU's: %s", name, error.message)
        return
    expected, found = reference.run(feed), session.run(feed)
    for output, right in expected.items():
        if (apart := distance(right, found[output])) > TOLERANCE:
            raise MeshError(
                Reason.MODEL_OPERATOR_UNSUPPORTED,
                f"{name} answers otherwise than the CPU: {output!r} differs by {apart:.3g} of its largest magnitude, "
                f"{TOLERANCE} is tolerated",
            )


def _options(
    name: str, compute: Compute, folder: Path | None, specs: Sequence[TensorSpec] = (), *, half: bool = False
) -> dict[str, str]:
    """Provider options (onnxruntime's documentation of its CUDA and TensorRT providers)."""
    if name == CUDA:
        options = {
            "device_id": "0",
            # The default doubles the arena: two segments of one node would run out of memory that neither uses.
            "arena_extend_strategy": "kSameAsRequested",
            # The default times every algorithm at the first run of each batch size, within some frame's deadline.
            "cudnn_conv_algo_search": "HEURISTIC",
            # Answers shall not depend on where they were computed.
            "use_tf32": "0",
        }
        return options | ({"gpu_mem_limit": str(compute.gpu_bytes)} if compute.gpu_bytes else {})
    if name != TENSORRT:
        return {}
    options = {"device_id": "0", "trt_fp16_enable": "1" if half else "0"}
    if compute.gpu_bytes:
        options["trt_max_workspace_size"] = str(compute.gpu_bytes)
    if folder is not None:
        options |= {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(folder),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(folder),
        }
    return options | _shape_ranges(specs, compute.max_batch)


def _shape_ranges(specs: Sequence[TensorSpec], most: int) -> dict[str, str]:
    """One engine for all batch sizes; without it TensorRT makes a new one, for minutes, whenever a batch is larger."""
    if not specs or any(-1 in spec.shape[1:] or spec.shape[:1] != (-1,) for spec in specs):
        return {}

    def shapes(batch: int) -> str:
        return ",".join(f"{spec.name}:{'x'.join(map(str, (batch, *spec.shape[1:])))}" for spec in specs)

    return {
        "trt_profile_min_shapes": shapes(1),
        "trt_profile_opt_shapes": shapes(most),
        "trt_profile_max_shapes": shapes(max(most, COMPARED_SAMPLES) if most > 1 else 1),
    }
