"""Settings of the tail."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field

from splitmesh.kernel.config import data_dir_default
from splitmesh.kernel.profiling import ProfilingSettings
from splitmesh.kernel.supervisor import ReplicaSettings


class TailSettings(ReplicaSettings, ProfilingSettings):
    """Settings of the tail, beside those every service has."""

    data_dir: Path = Field(default_factory=lambda: data_dir_default("tail"))
    """Where verified tails are kept, so that a restart does not need the registry."""
    service: str = Field(default="tail", pattern=r"^[a-z][a-z0-9-]{0,47}$")
    """Name under which this node is discovered; another than `tail` for nodes in the middle of a chain, such as `mec`."""
    next_service: str = Field(default="", pattern=r"^([a-z][a-z0-9-]{0,47})?$")
    """Name of the nodes that run the segment after this node's; empty: only last segments run here."""
    next_wait_s: float = Field(default=10.0, gt=0, le=25)
    """How long a stream to a segment in the middle waits until a next node has accepted it too, seconds."""
    codec: Literal["identity", "zstd"] = "zstd"
    """How features are packed for the next node."""
    max_batch: int = Field(default=16, ge=1, le=1024)
    """Most frames computed together."""
    max_batch_delay_ms: float = Field(default=2.0, ge=0, le=1000)
    """Longest wait of a frame for company while nothing is computed, milliseconds. Only frames that are likely to get company
    wait, and no longer than it saves; a lone client's never. 0: a batch is whatever waits already."""
    max_queue: int = Field(default=256, ge=1)
    """Most frames waiting per segment; one more is refused with QUEUE_FULL and a time to retry."""
    max_queue_total: int = Field(default=1024, ge=1)
    """Most frames waiting over all segments; as `max_queue`."""
    max_queue_bytes: int = Field(default=512 * 1024**2, ge=1)
    """Most bytes of unpacked frames waiting over all segments; a frame is always taken when none waits."""
    credit: int = Field(default=32, ge=1, le=4096)
    """Frames that one stream may have unanswered."""
    compute_threads: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
    """Threads inside one operator."""
    compute_slots: int = Field(default=0, ge=0, le=256)
    """Batches computed at once, over all segments, the most urgent first; 0: as many as the cores hold with
    `compute_threads` each, one at least."""
    max_run_s: float = Field(default=10.0, gt=0)
    """Longest computation of one batch; a longer one is stopped with DEADLINE_EXPIRED, seconds."""
    oip_alias: str = Field(default="production", pattern=r"^[a-z0-9._-]*[a-z._-][a-z0-9._-]*$", max_length=64)
    """Which version of a model answers a request of the Open Inference Protocol that names none; followed as it moves."""
    oip_max_batch: int = Field(default=64, ge=1, le=1024)
    """Most samples in one request of the Open Inference Protocol; more than `max_batch` are computed in several batches."""
    oip_in_order: bool = True
    """Answers of a stream of the Open Inference Protocol keep the order of its requests; otherwise each goes when it is ready."""
    max_pixels: int = Field(default=4096 * 4096, ge=1)
    """Largest encoded picture by width times height; a larger one is refused before it is decoded."""
    max_cache_bytes: int = Field(default=8 * 1024**3, ge=1)
    """Most that the parts kept in `data_dir` may take together, bytes; those unused for longest go first."""
    max_loaded_segments: int = Field(default=4, ge=1)
    """Segments kept in memory; the one unused for longest goes first, one with an open stream never."""
    load_deadline_s: float = Field(default=60.0, gt=0)
    """Longest time to fetch and load a segment, seconds."""

    def slots(self) -> int:
        """Batches computed at once."""
        return self.compute_slots or max(1, (os.cpu_count() or 1) // self.compute_threads)

    def replica(self, number: int) -> dict[str, object]:
        """As :meth:`ReplicaSettings.replica`: cores, disk and memory for what waits are shared out."""
        threads = max(1, self.compute_threads // self.processes)
        return super().replica(number) | {
            "data_dir": self.data_dir / f"replica-{number}",
            "compute_threads": threads,
            "compute_slots": max(1, self.slots() * self.compute_threads // (self.processes * threads)),
            "max_cache_bytes": max(1, self.max_cache_bytes // self.processes),
            "max_queue_bytes": max(1, self.max_queue_bytes // self.processes),
        }
