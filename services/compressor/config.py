"""Settings of the compressor, on top of those every service has."""

from __future__ import annotations

from pydantic import Field

from splitmesh.kernel.config import ServiceSettings


class CompressorSettings(ServiceSettings):
    """What compressions may take, and how they measure. Nothing is kept on disk."""

    max_running: int = Field(default=1, ge=1)
    """Compressions at a time, each in a child process."""
    max_queued: int = Field(default=8, ge=0)
    """Compressions in line; one more is refused with QUEUE_FULL."""
    max_kept: int = Field(default=256, ge=1)
    """Finished compressions that can still be watched and asked for their report; the oldest goes first."""
    job_deadline_s: float = Field(default=1800.0, gt=0)
    """A compression is stopped after this long, seconds."""
    max_job_memory_bytes: int = Field(default=8 << 30, ge=256 << 20)
    """Address space of a compression's process."""
    holdout_share: float = Field(default=0.3, gt=0, lt=1)
    """Part of the calibration samples that is kept from the fit, and on which everything is measured."""
    seed: int = Field(default=0, ge=0)
    """Of the division of the calibration samples; recorded with the outcomes."""
    watch_stream_s: float = Field(default=900.0, gt=0)
    """Longest life of one watch stream, seconds; it then ends without an error and the client asks again."""
