"""Settings of the router, on top of those every service has."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from splitmesh.kernel.config import ServiceSettings, data_dir_default


class RouterSettings(ServiceSettings):
    """Where goals, budgets and counts are kept, what is tolerated by default, how many may watch."""

    data_dir: Path = Field(default_factory=lambda: data_dir_default("router"))
    """Folder of the database; made when missing."""
    default_max_disagreement: float = Field(default=0.02, gt=0, lt=1)
    """Tolerated share of samples that the exit answers otherwise than the full model, where nobody stated one."""
    default_delta: float = Field(default=0.05, gt=0, lt=1)
    """Probability that the bound on the disagreement is wrong, where nobody stated one."""
    default_audit_share: float = Field(default=0.015, ge=0, le=0.5)
    """Share of the exits' answers that are asked of the tail all the same, where nobody stated one."""
    share_interval_s: float = Field(default=0.25, gt=0)
    """Least time between two changes of what a head may send, seconds."""
    max_backlog_ms: float = Field(default=100.0, gt=0)
    """How long a frame may have to wait at a site's least crowded tail before its heads are given less of the tails' time,
    milliseconds."""
    max_sharers: int = Field(default=1024, ge=1)
    """Streams of heads that share a site's uplink open at once; one more is refused with QUEUE_FULL."""
    max_watchers: int = Field(default=1024, ge=1)
    """Policy streams open at once; one more is refused with QUEUE_FULL."""
    watch_stream_s: float = Field(default=900.0, gt=0)
    """Longest life of one policy stream, seconds; it then ends without an error and the client asks again."""
