"""Settings of the tail."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field

from splitmesh.kernel.config import ServiceSettings, data_dir_default


class TailSettings(ServiceSettings):
    """Settings of the tail, beside those every service has."""

    data_dir: Path = Field(default_factory=lambda: data_dir_default("tail"))
    """Where verified tails are kept, so that a restart does not need the registry."""
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
