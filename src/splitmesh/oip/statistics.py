"""What requests took, counted by version since the node began, as ModelStatistics reports it.

Used on the event loop alone. Bounded: of versions beyond ``MAX_VERSIONS`` the one unused for longest is forgotten.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from splitmesh.api.oip.v2 import grpc_service_pb2 as pb
from splitmesh.oip.backend import Batch, Served, Spent

MAX_VERSIONS = 256
MAX_RECENT_BATCHES = 4096
"""Computations remembered, so that one shared by several requests counts once."""


@dataclass(slots=True)
class _Total:
    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        self.count += 1
        self.ns += max(0, ns)

    def message(self) -> pb.StatisticDuration:
        return pb.StatisticDuration(count=self.count, ns=self.ns)


@dataclass(slots=True)
class _BySize:
    input: _Total = field(default_factory=_Total)
    infer: _Total = field(default_factory=_Total)
    output: _Total = field(default_factory=_Total)


@dataclass(slots=True)
class _Counts:
    model: str
    version: int
    last_ms: int = 0
    samples: int = 0
    executions: int = 0
    success: _Total = field(default_factory=_Total)
    fail: _Total = field(default_factory=_Total)
    queue: _Total = field(default_factory=_Total)
    stages: _BySize = field(default_factory=_BySize)
    by_size: dict[int, _BySize] = field(default_factory=dict)

    def message(self) -> pb.ModelStatistics:
        stages, nothing = self.stages, _Total().message()
        return pb.ModelStatistics(
            name=self.model,
            version=str(self.version),
            last_inference=self.last_ms,
            inference_count=self.samples,
            execution_count=self.executions,
            inference_stats=pb.InferStatistics(
                success=self.success.message(),
                fail=self.fail.message(),
                queue=self.queue.message(),
                compute_input=stages.input.message(),
                compute_infer=stages.infer.message(),
                compute_output=stages.output.message(),
                cache_hit=nothing,
                cache_miss=nothing,
            ),
            batch_stats=[
                pb.InferBatchStatistics(
                    batch_size=size,
                    compute_input=one.input.message(),
                    compute_infer=one.infer.message(),
                    compute_output=one.output.message(),
                )
                for size, one in sorted(self.by_size.items())
            ],
        )


class Statistics:
    """Counts of every version that was asked."""

    def __init__(self) -> None:
        self._counts: OrderedDict[tuple[str, int], _Counts] = OrderedDict()
        self._recent: OrderedDict[int, None] = OrderedDict()

    def answered(
        self, served: Served, *, samples: int, total_ns: int, spent: Spent, output_ns: int, batches: Sequence[Batch]
    ) -> None:
        """A request was answered; ``total_ns`` from its arrival, ``output_ns`` for making the answer."""
        counts = self._of(served)
        counts.success.add(total_ns)
        counts.queue.add(spent.queue_ns)
        counts.stages.input.add(spent.input_ns)
        counts.stages.infer.add(spent.infer_ns)
        counts.stages.output.add(output_ns)
        counts.samples += samples
        for batch in batches:
            if batch.id in self._recent:
                continue
            self._recent[batch.id] = None
            if len(self._recent) > MAX_RECENT_BATCHES:
                self._recent.popitem(last=False)
            counts.executions += 1
            by_size = counts.by_size.get(batch.size)
            if by_size is None:
                by_size = counts.by_size[batch.size] = _BySize()
            by_size.input.add(spent.input_ns)
            by_size.infer.add(batch.infer_ns)
            by_size.output.add(output_ns)

    def refused(self, served: Served, total_ns: int) -> None:
        """A request got an error instead."""
        self._of(served).fail.add(total_ns)

    def messages(self, served: Sequence[Served] = (), model: str = "", version: str = "") -> list[pb.ModelStatistics]:
        """By model and version; those of ``served`` also where nobody asked them yet."""
        for one in served:
            self._of(one, asked=False)
        found = [
            counts
            for counts in self._counts.values()
            if model in ("", counts.model) and version in ("", str(counts.version))
        ]
        return [counts.message() for counts in sorted(found, key=lambda one: (one.model, one.version))]

    def _of(self, served: Served, *, asked: bool = True) -> _Counts:
        key = (served.model, served.version)
        counts = self._counts.get(key)
        if counts is None:
            counts = self._counts[key] = _Counts(*key)
        if asked:
            counts.last_ms = time.time_ns() // 1_000_000
            self._counts.move_to_end(key)
            while len(self._counts) > MAX_VERSIONS:
                self._counts.popitem(last=False)
        return counts
