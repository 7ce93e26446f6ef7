"""Segments on onnxruntime.

Takes the bytes of a model that were verified elsewhere, never a path: ORT resolves external data beside a path and
follows hard links. Checks every feed before ORT sees it, so that a caller reads the same errors from every backend.
Does not judge the model's size or operators; ``splitmesh.model.load`` does, before a model is registered.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.runtime.feeds import require_feeds
from splitmesh.tensor.spec import Array, TensorSpec

ORT_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}
"""onnxruntime's type strings by the names of ``splitmesh.tensor.DTYPES``; a test holds the two tables together."""

CPU = "CPUExecutionProvider"

Provider = str | tuple[str, Mapping[str, str]]
"""An execution provider by name, or with its options."""

_RECORD_ASSIGNMENT = "session.record_ep_graph_assignment_info"
_QUIET = 4
"""ORT's severity "fatal": what goes wrong is raised, not printed."""

_LOAD_ERRORS = (
    ort_errors.EPFail,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoModel,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)

_RUN_ERRORS = (
    ort_errors.EPFail,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)


class _Watchdog:
    """Stops runs that take too long, of all sessions with one thread: a thread per run costs 0.19 ms of it (measured)."""

    def __init__(self) -> None:
        self._running: dict[int, tuple[float, ort.RunOptions]] = {}
        self._changed = threading.Condition()
        self._wakes = math.inf
        self._thread: threading.Thread | None = None

    @contextmanager
    def watch(self, options: ort.RunOptions, max_run_s: float | None) -> Iterator[None]:
        """Sets the run's ``terminate`` when the block takes longer."""
        if max_run_s is None:
            yield
            return
        ends = time.monotonic() + max_run_s
        with self._changed:
            self._running[id(options)] = (ends, options)
            if self._thread is None or not self._thread.is_alive():  # a fork leaves its threads behind
                self._thread = threading.Thread(target=self._look, name="run-watchdog", daemon=True)
                self._thread.start()
            elif ends < self._wakes:
                self._wakes = ends
                self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                del self._running[id(options)]

    def _look(self) -> None:
        # A run that ends in time wakes nobody: at worst the thread looks once per `max_run_s` for nothing.
        with self._changed:
            while True:
                now = time.monotonic()
                for ends, options in self._running.values():
                    if ends <= now:
                        options.terminate = True
                self._wakes = min((ends for ends, _ in self._running.values() if ends > now), default=math.inf)
                self._changed.wait(min(self._wakes - now, threading.TIMEOUT_MAX))


_WATCHDOG = _Watchdog()


class OrtSession:
    """One segment loaded in onnxruntime; implements :class:`splitmesh.runtime.Session`.

    Args:
        model: the serialised model.
        threads: threads inside one operator. 1 by default: a host runs several segments side by side and latency
            under load is better when they do not fight for cores.
        providers: ORT execution providers in order of preference, each by name or with its options; the CPU when None.
            What none of them takes the CPU computes.
        max_run_s: a run that takes longer is stopped (DEADLINE_EXPIRED). ORT looks at the flag between operators, so
            one very long operator ends late. None: no watchdog.
        optimise: let the runtime fuse and fold the graph; False: it computes operator by operator, as the file says.

    Raises:
        MeshError: MODEL_CORRUPT when ORT cannot load the bytes; MODEL_OPERATOR_UNSUPPORTED when an input or output is
            not a dense tensor of a known type; FIELD_INVALID when a provider is not in this build of ORT; EXTRA_MISSING when
            its libraries are not on this host and ORT says so.
    """

    def __init__(
        self,
        model: bytes,
        *,
        threads: int = 1,
        providers: Sequence[Provider] | None = None,
        max_run_s: float | None = None,
        optimise: bool = True,
    ) -> None:
        wanted = [(one, {}) if isinstance(one, str) else (one[0], dict(one[1])) for one in providers or (CPU,)]
        names = [name for name, _ in wanted]
        _require_providers(names)
        options = _options(threads, optimise)
        if names != [CPU]:
            options.add_session_config_entry(_RECORD_ASSIGNMENT, "1")
        try:
            # Without ORT's own fallback, which prints and goes on: who asked for a provider shall hear that it failed.
            session = ort.InferenceSession(bytes(model), sess_options=options, providers=wanted, enable_fallback=0)
        except _LOAD_ERRORS as error:
            raise MeshError(Reason.MODEL_CORRUPT, f"onnxruntime cannot load the model: {_first_line(error)}") from error
        except (RuntimeError, ValueError) as error:  # so ORT says that a provider's libraries are missing
            raise MeshError(
                Reason.EXTRA_MISSING, f"{', '.join(names)} cannot be opened: {_last_line(error)}"
            ) from error
        self._session: ort.InferenceSession | None = session
        self._max_run_s = max_run_s
        self._inputs = tuple(_spec(node) for node in session.get_inputs())
        self._outputs = tuple(_spec(node) for node in session.get_outputs())
        self._output_names = [spec.name for spec in self._outputs]
        self.providers: tuple[str, ...] = _computing(session, names)
        """The providers that compute a part of the model: ORT drops one whose libraries or device it cannot open."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What ``run`` takes, in the model's order."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What ``run`` returns, in the model's order."""
        return self._outputs

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs by name.

        Raises MeshError TENSOR_SHAPE_MISMATCH / TENSOR_DTYPE_MISMATCH for wrong feeds, DEADLINE_EXPIRED when stopped by
        the watchdog, NOT_READY after ``close`` and MODEL_CORRUPT when the model itself fails on feeds that match.
        """
        session = self._session
        if session is None:
            raise MeshError(Reason.NOT_READY, "the session is closed")
        require_feeds(self._inputs, feeds)
        options = ort.RunOptions()
        options.log_severity_level = _QUIET
        try:
            with _WATCHDOG.watch(options, self._max_run_s):
                arrays = session.run(self._output_names, dict(feeds), options)
        except _RUN_ERRORS as error:
            if options.terminate:
                raise MeshError(Reason.DEADLINE_EXPIRED, f"the run was stopped after {self._max_run_s} s") from error
            raise MeshError(Reason.MODEL_CORRUPT, f"the model fails on this input: {_first_line(error)}") from error
        return dict(zip(self._output_names, arrays, strict=True))

    def close(self) -> None:
        """Give the memory back; closing twice is harmless."""
        self._session = None


def _require_providers(wanted: Sequence[str]) -> None:
    available = ort.get_available_providers()
    missing = [name for name in wanted if name not in available]
    if missing:
        raise field_error("providers", f"{', '.join(missing)} not in this onnxruntime; it has {', '.join(available)}")


def _computing(session: ort.InferenceSession, wanted: Sequence[str]) -> tuple[str, ...]:
    in_use = [name for name in session.get_providers() if name in wanted or name == CPU]
    # From onnxruntime 1.24 on; before, a provider that is open and takes nothing looks as if it computed.
    assigned = getattr(session, "get_provider_graph_assignment_info", None)
    if list(wanted) == [CPU] or assigned is None:
        return tuple(in_use)
    busy = {part.ep_name for part in assigned()}
    return tuple(name for name in in_use if name in busy) or (CPU,)


def _options(threads: int, optimise: bool) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
    # The arena keeps what the largest batch needed: steady latency, memory bounded by the batch size the host accepts.
    options.enable_cpu_mem_arena = True
    # Waiting threads sleep: a MEC host shares its cores with other segments.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = _QUIET
    return options


def _spec(node: ort.NodeArg) -> TensorSpec:
    dtype = ORT_DTYPES.get(node.type)
    if dtype is None:
        raise MeshError(
            Reason.MODEL_OPERATOR_UNSUPPORTED,
            f"tensor {node.name!r} has type {node.type}; supported: {', '.join(ORT_DTYPES.values())}",
        )
    return TensorSpec(node.name, dtype, tuple(dim if isinstance(dim, int) and dim > 0 else -1 for dim in node.shape))


def _last_line(error: Exception) -> str:
    # After the place in ORT's source.
    return str(error).strip().splitlines()[-1].rpartition(") ")[2][:300] or type(error).__name__


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]
