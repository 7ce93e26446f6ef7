"""What an operator can set on the registry, with units and defaults. Every limit here bounds memory, disk or time."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from splitmesh.kernel.config import ServiceSettings, data_dir_default

MIB = 1024 * 1024
GIB = 1024 * MIB


class RegistrySettings(ServiceSettings):
    """Where the registry keeps its state and how much it takes on at once."""

    data_dir: Path = Field(default_factory=lambda: data_dir_default("registry"))
    """Folder of the metadata and the artefacts; one process at a time uses it."""

    max_artifact_bytes: int = Field(default=2 * GIB, ge=1)
    """Largest artefact accepted; a larger one is refused with FRAME_TOO_LARGE before a byte is written."""
    max_store_bytes: int = Field(default=0, ge=0)
    """Most bytes of artefacts and unfinished uploads together; 0: what the disk takes. Beyond it: STORAGE_FULL."""
    min_free_bytes: int = Field(default=256 * MIB, ge=0)
    """Uploads leave this much of the disk free, so that metadata can still be written; beyond it: STORAGE_FULL."""
    max_artifacts_per_version: int = Field(default=64, ge=1, le=64)
    """Most artefacts in one version; 64 keeps a full page of versions below the message limit."""

    max_uploads: int = Field(default=32, ge=1)
    """Uploads in progress at once, each holding up to 1 MiB of memory; one more is refused with QUEUE_FULL."""
    upload_idle_s: float = Field(default=30.0, gt=0)
    """An upload that sends nothing for this long ends with DEADLINE_EXPIRED, seconds; what came is kept."""
    upload_stream_s: float = Field(default=3600.0, gt=0)
    """Longest life of one upload stream, seconds; what came is kept and a new stream resumes it."""
    upload_wait_s: float = Field(default=10.0, gt=0)
    """Longest wait for another upload of the same content to end, seconds; beyond it: QUEUE_FULL."""
    stale_upload_s: float = Field(default=7 * 24 * 3600.0, gt=0)
    """An unfinished upload that nobody has continued for this long is removed, seconds."""
    sweep_every_s: float = Field(default=3600.0, gt=0)
    """Time between two removals of stale uploads, seconds; the first is at start."""

    max_downloads: int = Field(default=64, ge=1)
    """Downloads in progress at once, each holding up to 1 MiB of memory; one more is refused with QUEUE_FULL."""
    max_watchers: int = Field(default=2000, ge=1)
    """Alias watchers at once; one more is refused with QUEUE_FULL."""
    watch_stream_s: float = Field(default=900.0, gt=0)
    """Longest life of one watch stream, seconds; it then ends without an error and the client asks again."""
    send_idle_s: float = Field(default=30.0, gt=0)
    """A download or watch whose client reads nothing for this long ends with DEADLINE_EXPIRED, seconds."""

    max_checks: int = Field(default=2, ge=1)
    """Child processes checking models at once; further checks wait."""
    check_memory_bytes: int = Field(default=4 * GIB, ge=512 * MIB)
    """Address space of such a child; a model that needs more is refused with MODEL_TOO_LARGE."""
    check_cpu_s: int = Field(default=60, ge=1)
    """Processor time of such a child, seconds; a model that needs more is refused with MODEL_TOO_LARGE."""
    check_deadline_s: float = Field(default=120.0, gt=0)
    """Wall-clock time of such a child, seconds; a model that needs more is refused with MODEL_TOO_LARGE."""
