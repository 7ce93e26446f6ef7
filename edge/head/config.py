"""Settings of the head."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from splitmesh.kernel.config import data_dir_default
from splitmesh.kernel.profiling import ProfilingSettings

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
"""What the registry accepts as the name of a model or an alias."""


class HeadSettings(ProfilingSettings):
    """Settings of the head, beside those every service has."""

    data_dir: Path = Field(default_factory=lambda: data_dir_default("head"))
    """Where verified heads, versions and policies are kept, so that a restart needs no other service."""
    models: str = Field(default="solder-joints", min_length=1)
    """Models to serve, separated by commas; the first answers requests that name none."""
    alias: str = Field(default="production", min_length=1)
    """Which alias of each model to follow."""
    tail_service: str = Field(default="tail", min_length=1)
    """Name under which tails are discovered."""
    codec: Literal["identity", "zstd"] = "zstd"
    """How features are packed for the uplink, where a version brings no coder of its own."""
    link_budget_ms: float = Field(default=100.0, gt=0)
    """Time on the link that a hard frame may take beside the round trip, milliseconds; where the link is slower than that,
    features cross at a lower rate of the version's code."""
    max_pixels: int = Field(default=4096 * 4096, ge=1)
    """Largest picture by width times height; a larger one is refused before it is decoded."""
    default_deadline_ms: int = Field(default=1000, ge=1, le=600_000)
    """Deadline of a frame whose sender set none, milliseconds."""
    answer_margin_ms: float = Field(default=20.0, ge=0)
    """Kept back from a frame's deadline when waiting for the tail, so that the fallback answer is still in time,
    milliseconds."""
    credit: int = Field(default=32, ge=1, le=4096)
    """Frames that one stream may have unanswered."""
    max_frames: int = Field(default=256, ge=1)
    """Frames in progress over all streams and calls; one more is refused with QUEUE_FULL."""
    workers: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
    """Frames decoded and computed at the same time, one thread each."""
    segment_threads: int = Field(default=1, ge=1)
    """Threads inside one operator of the head."""
    max_run_s: float = Field(default=5.0, gt=0)
    """Longest computation of one frame by the head; a longer one is stopped with DEADLINE_EXPIRED, seconds."""
    max_cache_bytes: int = Field(default=8 * 1024**3, ge=1)
    """Most that the parts kept in `data_dir` may take together, bytes; those unused for longest go first, those of a
    version that a followed alias stands for never."""
    switch_wait_s: float = Field(default=30.0, ge=0)
    """How long a new version waits for a tail to accept it before the head switches to it all the same, seconds."""
    report_interval_s: float = Field(default=1.0, gt=0)
    """Time between two reports of outcomes to the router, seconds."""

    @field_validator("models")
    @classmethod
    def _some_model(cls, models: str) -> str:
        if not models.replace(",", " ").strip():
            raise ValueError("names no model")
        for name in _split(models):
            _check_name(name)
        return models

    @field_validator("alias")
    @classmethod
    def _possible_alias(cls, alias: str) -> str:
        _check_name(alias)
        if alias.isdigit():
            raise ValueError(f"{alias!r} is only digits: that would read like a version")
        return alias

    def model_names(self) -> list[str]:
        """`models` as a list."""
        return _split(self.models)


def _split(models: str) -> list[str]:
    return [name.strip() for name in models.split(",") if name.strip()]


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not 1 to 64 of a-z, 0-9, dot, dash and underscore, beginning with a-z or 0-9")
