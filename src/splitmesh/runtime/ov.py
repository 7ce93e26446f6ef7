"""Segments on OpenVINO, an optional package (``splitmesh[openvino]``).

Takes the bytes of a model that were verified elsewhere, never a path, and checks every feed as the other backends do. A batch
of one, what a camera sends, is compiled with its size fixed, which is 5 to 15 % quicker (measured); any other size is compiled
once more, when it first comes. Does not say which precision is good enough; ``measure.py`` compares answers.

OpenVINO's package tells its makers when it is imported, where somebody on this machine ever agreed to that, through another
package that it brings along. A production line tells nobody: that package is kept from being found.
"""

from __future__ import annotations

import importlib
import math
import queue
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.runtime.feeds import require_feeds
from splitmesh.runtime.graph_names import graph_names
from splitmesh.tensor.spec import Array, TensorSpec

OV_DTYPES = {
    "f32": "float32",
    "f16": "float16",
    "f64": "float64",
    "u8": "uint8",
    "i8": "int8",
    "i32": "int32",
    "i64": "int64",
    "boolean": "bool",
}
"""OpenVINO's type names by the names of ``splitmesh.tensor.DTYPES``; a test holds the two tables together."""

HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
"""OpenVINO's word for the numbers that it is to compute with."""

PACKAGE = "openvino"
TELEMETRY = "openvino_telemetry"


class OpenVinoSession:
    """One segment loaded in OpenVINO; implements :class:`splitmesh.runtime.Session`.

    Args:
        model: the serialised ONNX model.
        threads: threads that compute one run.
        streams: runs computed at the same time, each with so many threads; one more waits.
        precision: ``fp32``, ``bf16`` or ``fp16``; what the device has no such numbers for it computes as it can.
        device: OpenVINO's name of it, such as ``CPU`` or ``GPU.0``.
        max_run_s: a run that takes longer is stopped (DEADLINE_EXPIRED), between two operators. None: it is not.

    Raises:
        MeshError: MODEL_CORRUPT when OpenVINO cannot read or compile the bytes; MODEL_OPERATOR_UNSUPPORTED when an input or
            output is not a dense tensor of a known type and rank; FIELD_INVALID for another precision or a device that is not
            here; EXTRA_MISSING when the package is not installed.
    """

    def __init__(
        self,
        model: bytes,
        *,
        threads: int = 1,
        streams: int = 1,
        precision: str = "fp32",
        device: str = "CPU",
        max_run_s: float | None = None,
    ) -> None:
        if precision not in HINTS:
            raise field_error("precision", f"is {precision!r}, expected {', '.join(HINTS)}")
        openvino = load_openvino()
        core = _core()
        if device.partition(".")[0] not in {name.partition(".")[0] for name in core.available_devices}:
            raise field_error("device", f"{device!r} is not here; OpenVINO finds {', '.join(core.available_devices)}")
        try:
            self._model: Any = core.read_model(bytes(model))
        except RuntimeError as error:
            raise _corrupt("read", error) from error
        taken, given = graph_names(model)
        ports = {name: port for port in self._model.inputs for name in port.names}
        gives = {name: index for index, port in enumerate(self._model.outputs) for name in port.names}
        if missing := [*(set(taken) - ports.keys()), *(set(given) - gives.keys())]:
            raise MeshError(
                Reason.MODEL_OPERATOR_UNSUPPORTED, f"OpenVINO lost {', '.join(sorted(missing))} of the model"
            )
        self._inputs = tuple(_spec(name, ports[name]) for name in taken)
        self._outputs = tuple(_spec(name, self._model.outputs[gives[name]]) for name in given)
        self._places = [gives[name] for name in given]
        # By number: of a compiled model, names may have changed.
        self._input_places = {name: self._model.inputs.index(ports[name]) for name in taken}
        self._tensor = openvino.Tensor
        self._device = device
        self._properties = _properties(device, threads, streams, precision)
        self._streams = streams
        self._max_run_s = max_run_s
        self._lock = threading.Lock()
        self._closed = False
        self._compiled: dict[bool, _Requests] = {}
        self._requests(single=self._fixes)  # refused now, not at the first frame

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What ``run`` takes, in the model's order."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What ``run`` returns, in the model's order."""
        return self._outputs

    @property
    def providers(self) -> tuple[str, ...]:
        """The back end's name with the device."""
        return (f"openvino-{self._device.lower()}",)

    @property
    def _fixes(self) -> bool:
        """Nothing varies but the batch, so that a batch of one can be compiled as such."""
        return all(spec.shape[:1] == (-1,) and -1 not in spec.shape[1:] for spec in self._inputs)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs by name; raises as :meth:`splitmesh.runtime.OrtSession.run`."""
        if self._closed:
            raise _closed()
        require_feeds(self._inputs, feeds)
        single = self._fixes and all(array.shape[0] == 1 for array in feeds.values())
        requests = self._requests(single=single)
        request = requests.take()
        try:
            return self._run(request, feeds)
        finally:
            requests.give(request)

    def _run(self, request: Any, feeds: Mapping[str, Array]) -> dict[str, Array]:
        kept = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        stopped = False
        try:
            for name, array in kept.items():
                # Of memory that may only be read OpenVINO wants a copy.
                shared = array.flags.writeable and array.size > 0
                request.set_input_tensor(self._input_places[name], self._tensor(array, shared_memory=shared))
            request.start_async()
            if self._max_run_s is not None and not request.wait_for(math.ceil(self._max_run_s * 1e3)):
                stopped = True
                request.cancel()
            request.wait()
        except RuntimeError as error:
            if stopped:
                raise MeshError(Reason.DEADLINE_EXPIRED, f"the run was stopped after {self._max_run_s} s") from error
            raise MeshError(Reason.MODEL_CORRUPT, f"the model fails on this input: {_last_line(error)}") from error
        # Copied: the request's own memory holds the next run's answer soon.
        return {
            spec.name: np.array(request.get_output_tensor(place).data)
            for spec, place in zip(self._outputs, self._places, strict=True)
        }

    def close(self) -> None:
        """Give the memory back; closing twice is harmless."""
        with self._lock:
            self._closed = True
            self._compiled.clear()
            self._model = None

    def _requests(self, *, single: bool) -> _Requests:
        found = self._compiled.get(single)
        if found is not None:
            return found
        with self._lock:
            if self._closed:
                raise _closed()
            if single not in self._compiled:
                self._compiled[single] = _Requests(self._compile(single), self._streams)
            return self._compiled[single]

    def _compile(self, single: bool) -> Any:
        model = self._model
        try:
            if single:
                model = model.clone()
                model.reshape({self._input_places[spec.name]: [1, *spec.shape[1:]] for spec in self._inputs})
            return _core().compile_model(model, self._device, self._properties)
        except RuntimeError as error:
            raise _corrupt("compile", error) from error


class _Requests:
    """As many runs as may be under way at once; who finds none waits for the next."""

    def __init__(self, compiled: Any, count: int) -> None:
        self._compiled = compiled
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(count):
            self._free.put(compiled.create_infer_request())

    def take(self) -> Any:
        return self._free.get()

    def give(self, request: Any) -> None:
        self._free.put(request)


def keep_quiet() -> None:
    """Have OpenVINO tell nobody that it is used; to be called before it is imported."""
    # What the import machinery takes for "there is no such package": OpenVINO has a stand-in for that case.
    sys.modules.setdefault(TELEMETRY, None)  # type: ignore[arg-type]


def load_openvino() -> Any:
    """The package, kept quiet; MeshError EXTRA_MISSING where it is not installed or is broken."""
    keep_quiet()
    try:
        return importlib.import_module(PACKAGE)
    except ImportError as error:
        raise MeshError(
            Reason.EXTRA_MISSING, f"OpenVINO cannot be loaded ({error}): pip install 'splitmesh[openvino]'"
        ) from error


@cache
def _core() -> Any:
    return load_openvino().Core()


def _properties(device: str, threads: int, streams: int, precision: str) -> dict[str, Any]:
    properties: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": HINTS[precision],
        "PERFORMANCE_HINT_NUM_REQUESTS": streams,
    }
    if device != "CPU":
        return properties
    return properties | {
        "NUM_STREAMS": str(streams),
        # Of all streams together.
        "INFERENCE_NUM_THREADS": threads * streams,
        # Several segments of one host would all be pinned to the same first cores.
        "ENABLE_CPU_PINNING": False,
        # Rounds activations to 8 bits where weights are: nobody asked for that.
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    }


def _spec(name: str, port: Any) -> TensorSpec:
    kind, shape = port.element_type.get_type_name(), port.partial_shape
    dtype = OV_DTYPES.get(kind)
    if dtype is None or shape.rank.is_dynamic:
        what = f"type {kind}" if dtype is None else "no known number of dimensions"
        raise MeshError(
            Reason.MODEL_OPERATOR_UNSUPPORTED,
            f"tensor {name!r} has {what} in OpenVINO; supported: {', '.join(OV_DTYPES.values())}",
        )
    return TensorSpec(name, dtype, tuple(-1 if dim.is_dynamic else dim.get_length() for dim in shape))


def _corrupt(what: str, error: Exception) -> MeshError:
    return MeshError(Reason.MODEL_CORRUPT, f"OpenVINO cannot {what} the model: {_last_line(error)}")


def _closed() -> MeshError:
    return MeshError(Reason.NOT_READY, "the session is closed")


def _last_line(error: Exception) -> str:
    """What is not a place in OpenVINO's source, the first of it, and what it says of operators."""
    lines = [line.strip(" -") for line in str(error).splitlines()]
    said = [
        line
        for line in lines
        if line and not line.startswith(("Exception from", "Check '", "Summary", "To facilitate"))
    ]
    return "; ".join(said)[:300] or type(error).__name__


def devices() -> Sequence[str]:
    """What OpenVINO finds here; MeshError EXTRA_MISSING as :func:`load_openvino`."""
    return tuple(str(name) for name in _core().available_devices)
