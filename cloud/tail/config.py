"""Settings of the tail."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field

from splitmesh.kernel.config import data_dir_default
from splitmesh.kernel.profiling import ProfilingSettings


class TailSettings(ProfilingSettings):
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
    """Longest wait of a frame for company, milliseconds; 0: a batch is whatever waits already."""
    max_queue: int = Field(default=256, ge=1)
    """Most frames waiting per segment; one more is refused with QUEUE_FULL and a time to retry."""
    credit: int = Field(default=32, ge=1, le=4096)
    """Frames that one stream may have unanswered."""
    compute_threads: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
    """Threads inside one operator."""
    max_run_s: float = Field(default=10.0, gt=0)
    """Longest computation of one batch; a longer one is stopped with DEADLINE_EXPIRED, seconds."""
    max_cache_bytes: int = Field(default=8 * 1024**3, ge=1)
    """Most that the parts kept in `data_dir` may take together, bytes; those unused for longest go first."""
    max_loaded_segments: int = Field(default=4, ge=1)
    """Segments kept in memory; the one unused for longest goes first, one with an open stream never."""
    load_deadline_s: float = Field(default=60.0, gt=0)
    """Longest time to fetch and load a segment, seconds."""
