"""Settings of the compressor, on top of those every service has."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from splitmesh.kernel.config import ServiceSettings, data_dir_default


class CompressorSettings(ServiceSettings):
    """Where compressions are kept, where samples may be read from, and what a compression may take."""

    data_dir: Path = Field(default_factory=lambda: data_dir_default("compressor"))
    """Folder of the compressions and their unfinished steps; one process at a time uses it."""
    samples_dir: Path | None = None
    """Folder below which a request may name a `calibration_folder`; unset: none may. Read where it lies, never copied out."""
    max_running: int = Field(default=1, ge=1)
    """Compressions at a time, each in a child process."""
    max_queued: int = Field(default=8, ge=0)
    """Compressions in line; one more is refused with QUEUE_FULL."""
    max_kept: int = Field(default=256, ge=1)
    """Ended compressions that can still be watched, resumed and asked for their report; the oldest goes first."""
    job_deadline_s: float = Field(default=21600.0, gt=0)
    """A compression is stopped after running this long, seconds; the steps it finished stay done."""
    max_job_memory_bytes: int = Field(default=16 << 30, ge=1 << 30)
    """Address space of a compression's process, of which its libraries take 1 GiB, torch 5 GiB."""
    threads: int = Field(default=1, ge=1, le=256)
    """Threads of every model that a compression runs or trains; latencies in reports are measured with as many."""
    watch_stream_s: float = Field(default=900.0, gt=0)
    """Longest life of one watch stream, seconds; it then ends without an error and the client asks again."""
