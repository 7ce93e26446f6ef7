"""Settings of the partitioner, on top of those every service has."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from splitmesh.kernel.config import ServiceSettings, data_dir_default


class PartitionerSettings(ServiceSettings):
    """What a job may take."""

    data_dir: Path = Field(default_factory=lambda: data_dir_default("partitioner"))
    """Where keyrings are kept, so that it never goes back to an older one. Profiles are in the registry."""
    profiled_services: str = Field(default="head,tail", pattern=r"^[a-z][a-z0-9-]{0,47}(,[a-z][a-z0-9-]{0,47})*$")
    """Names under which nodes that can time pieces are discovered, separated by commas."""
    profile_threads: int = Field(default=1, ge=1, le=256)
    """Threads inside one operator while timing; as many as the edge and the cloud will use."""
    max_disagreement: float = Field(default=0.02, gt=0, lt=1)
    """Tolerated share of exit answers unlike the whole model's, when exits are tried at the cuts."""
    delta: float = Field(default=0.05, gt=0, lt=1)
    """Probability that the bound behind it is wrong."""
    holdout_share: float = Field(default=0.3, gt=0, lt=1)
    """Part of the calibration samples that thresholds of tried exits are chosen on; as the compressor's."""
    max_running_jobs: int = Field(default=1, ge=1)
    """Jobs at a time, each in a child process. More than 1 makes timings disturb each other."""
    max_waiting_jobs: int = Field(default=8, ge=0)
    """Jobs in line; one more is refused with QUEUE_FULL."""
    max_job_memory_bytes: int = Field(default=8 << 30, ge=256 << 20)
    """Address space of a job's process."""
    profile_margin_s: float = Field(default=120.0, gt=0)
    """A profile is stopped this long after its budget: loading and the least measurements take their time, seconds."""
    split_deadline_s: float = Field(default=300.0, gt=0)
    """A split is stopped after this long, seconds."""
    default_deadline_s: float = Field(default=600.0, gt=0)
    """Deadline of a unary call whose caller set none, seconds; calls of this service may profile first."""
