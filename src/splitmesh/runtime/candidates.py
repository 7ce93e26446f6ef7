"""In which ways a host could compute a segment, and which of them is best once they were measured. Pure: opens nothing.

The rule is one for threads, precisions and back ends alike: the most frames per second of the whole host, among the ways that
are quick enough for one frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.runtime import providers
from splitmesh.runtime.host_backends import BF16, FP16, FP32, BackendFacts

REFERENCE_BACKEND = "onnxruntime-cpu"
"""Whose answers in fp32 are right; it is on every host."""
FAMILIES = ("onnxruntime", "openvino")
"""What ``auto`` means."""
PROCESSORS = ("onnxruntime-cpu", "openvino-cpu")
"""Back ends that compute with the processor's cores; the others have a device of their own."""
NEARLY = 0.95
"""As many frames per second as the best, within what differs from run to run."""

TOLERANCES = {FP32: 0.02, FP16: 0.03, BF16: 0.05}
"""Of an output's largest magnitude. Other kernels add in another order, and a value rounded to 8 bits may move a step."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way of computing a segment."""

    backend: str
    precision: str
    threads: int
    """Inside an operator."""

    @property
    def on_processor(self) -> bool:
        """It computes with the host's cores."""
        return self.backend in PROCESSORS

    @property
    def way(self) -> tuple[str, str]:
        """Without the threads."""
        return self.backend, self.precision

    def __str__(self) -> str:
        return f"{self.backend} {self.precision} with {self.threads} threads"


REFERENCE = Candidate(REFERENCE_BACKEND, FP32, 1)


@dataclass(frozen=True, slots=True)
class Measured:
    """What a candidate did."""

    candidate: Candidate
    p50_ms: float = 0.0
    """Of one frame while the host computes as many as it will; 0: not measured."""
    p99_ms: float = 0.0
    """Of the same runs: a worst case for deadlines."""
    frames_per_s: float = 0.0
    """Of the whole host."""
    error: float = 0.0
    """Largest difference from the reference, as a share of its largest magnitude."""
    memory_bytes: int = 0
    """That it took when it was opened and run; 0: not known."""
    runs: int = 0
    refused: str = ""
    """Why it is not used; empty: it could be."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What the host is asked to do, as far as it matters for the choice."""

    cores: int
    workers: int
    """Frames computed side by side at most."""
    latency_ms: float
    """What one frame should take at most."""
    backends: tuple[str, ...] = ("auto",)
    """``auto``, families such as ``openvino`` or names such as ``openvino-cpu``."""
    precisions: tuple[str, ...] = ("auto",)
    """``auto`` or some of fp32, bf16, fp16."""
    provider: providers.Wish = "auto"
    """What onnxruntime may compute with: ``auto``, ``cpu``, ``cuda`` or ``tensorrt``."""
    threads: int = 0
    """Fixed; 0: what is best."""
    batch: int = 1
    """Most frames that will be computed together."""

    def lanes(self, candidate: Candidate) -> int:
        """Frames that the host computes side by side."""
        return max(1, min(self.workers, self.cores // candidate.threads)) if candidate.on_processor else 1


def thread_counts(most: int) -> list[int]:
    """1, 2, 4 … and ``most``."""
    counts = [1 << power for power in range(most.bit_length())]
    return sorted({count for count in counts if count <= most} | {most})


def candidates(wish: Wish, backends: Sequence[BackendFacts]) -> tuple[list[Candidate], list[Measured]]:
    """What is to be measured, few and many threads of every way first; and what cannot be, with the reason.

    Raises MeshError FIELD_INVALID for a name that means nothing, EXTRA_MISSING where nothing that is wished for is usable here.
    """
    wanted = [one for one in backends if _is_wished(one.name, wish)]
    _require_known(wish, backends)
    refused = [Measured(Candidate(one.name, FP32, 1), refused=one.unusable) for one in wanted if one.unusable]
    ways: list[tuple[str, str]] = []
    for one in wanted:
        if one.unusable:
            continue
        for precision in _precisions(one.name):
            if wish.precisions != ("auto",) and precision not in wish.precisions:
                continue
            if precision in one.precisions:
                ways.append((one.name, precision))
            else:
                why = one.refused.get(precision, f"{one.name} does not compute with {precision} here")
                refused.append(Measured(Candidate(one.name, precision, 1), refused=why))
    if not ways:
        reasons = "; ".join(f"{one.candidate.backend} {one.candidate.precision}: {one.refused}" for one in refused)
        raise MeshError(
            Reason.EXTRA_MISSING, f"nothing that may compute is usable on this host: {reasons or 'none is here'}"
        )
    counts = [wish.threads] if wish.threads else thread_counts(wish.cores)
    counts = list(dict.fromkeys((counts[0], counts[-1], *counts)))
    found = [Candidate(*way, count) for count in counts for way in ways if way[0] in PROCESSORS]
    return [*(Candidate(*way, 1) for way in ways if way[0] not in PROCESSORS), *found], refused


def choose(measured: Sequence[Measured], latency_ms: float) -> Measured:
    """The best, of those that are not refused; there has to be one.

    Of those whose worst is quick enough the one with the most frames per second; of nearly as many the one with all of its
    digits, and of these the quickest. The quickest of all where none is quick enough.
    """
    able = [one for one in measured if not one.refused]
    quick = [one for one in able if one.p99_ms <= latency_ms]
    if not quick:
        return min(able, key=lambda one: one.p50_ms)
    enough = NEARLY * max(one.frames_per_s for one in quick)
    return min(
        (one for one in quick if one.frames_per_s >= enough),
        key=lambda one: (one.candidate.precision != FP32, one.p50_ms),
    )


def _is_wished(name: str, wish: Wish) -> bool:
    family, _, device = name.partition("-")
    if family not in FAMILIES:
        return False
    if family == "onnxruntime" and wish.provider != "auto" and device != wish.provider:
        return False
    if wish.backends != ("auto",):
        return name in wish.backends or family in wish.backends
    # Who asks onnxruntime for a GPU by name shall not compute elsewhere unseen.
    return family == "onnxruntime" or wish.provider in ("auto", device)


def _require_known(wish: Wish, backends: Sequence[BackendFacts]) -> None:
    names = {"auto", *FAMILIES, *(one.name for one in backends)}
    if unknown := [name for name in wish.backends if name not in names and name.partition("-")[0] not in FAMILIES]:
        raise field_error("backends", f"names {', '.join(unknown)}, expected auto, {', '.join(FAMILIES)}")
    if missing := [
        name
        for name in wish.backends
        if name != "auto" and not any(one.name == name or one.name.partition("-")[0] == name for one in backends)
    ]:
        raise MeshError(
            Reason.EXTRA_MISSING,
            f"{', '.join(missing)} is asked for and not installed here: pip install 'splitmesh[{missing[0].partition('-')[0]}]'",
        )


def _precisions(backend: str) -> tuple[str, ...]:
    """That the back end can be told to compute with, apart from the file's own."""
    return (FP32, BF16, FP16) if backend.startswith("openvino") else (FP32,)
