"""Settings of the head."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from splitmesh.client.balance import Policy
from splitmesh.kernel.config import data_dir_default
from splitmesh.kernel.profiling import ProfilingSettings
from splitmesh.kernel.supervisor import ReplicaSettings

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
"""What the registry accepts as the name of a model or an alias."""
_LEVELS = [str(level) for level in range(10)]
SAMPLE_CONTENTS = frozenset({"picture", "thumbnail", "features"})
"""What is kept of a sample beside its record."""


class HeadSettings(ReplicaSettings, ProfilingSettings):
    """Settings of the head, beside those every service has."""

    fronted: ClassVar[bool] = True

    data_dir: Path = Field(default_factory=lambda: data_dir_default("head"))
    """Where verified heads, versions and policies are kept, so that a restart needs no other service."""
    models: str = "solder-joints"
    """Models to serve, separated by commas; the first answers requests that name none. Empty: only those that are assigned."""
    max_models: int = Field(default=16, ge=1, le=1000)
    """Most models that are served at once, those of `models` and those that are assigned."""
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
    milliseconds; on a host that runs things late, as much more."""
    balance: Literal["latency", "in_flight"] = "latency"
    """Which of several tails gets a frame: the one where it should take least, or the one with the fewest unanswered."""
    eject_factor: float = Field(default=4.0, ge=0, le=1000)
    """A tail that takes so many times what the others take, or fails far more frames, gets none for a while (1 s, then longer);
    0: a tail keeps getting frames whatever it does."""
    hedge_budget: float = Field(default=0.05, ge=0, le=1)
    """Frames that may be sent to a second tail because the first is late, as a share of all; 0: none."""
    credit: int = Field(default=32, ge=1, le=4096)
    """Frames that one stream may have unanswered."""
    live_frames: int = Field(default=4, ge=1, le=4096)
    """Frames worked on at once of a stream that drops old ones (DROP_POLICY_OLDEST); the others wait, the newest first."""
    oip_max_batch: int = Field(default=32, ge=1, le=1024)
    """Most samples in one request of the Open Inference Protocol; each is a frame of its own."""
    oip_in_order: bool = True
    """Answers of a stream of the Open Inference Protocol keep the order of its requests; otherwise each goes when it is ready."""
    max_frames: int = Field(default=256, ge=1)
    """Frames in progress over all streams and calls; one more is refused with QUEUE_FULL."""
    workers: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
    """Frames decoded and computed at the same time, one thread each."""
    cores: int = Field(default=0, ge=0, le=4096)
    """Processor cores for which the threads inside an operator are chosen, those of all workers together; 0: all that this
    process may use."""
    segment_threads: int = Field(default=0, ge=0, le=256)
    """Threads inside one operator of the head; 0: what gives most frames per second on this host while one frame's head takes
    at most a quarter of `default_deadline_ms`, measured when the first version is loaded."""
    backends: str = "auto"
    """What may compute heads, separated by commas: `onnxruntime`, `openvino`, or one by name such as `openvino-cpu`; `auto`: all
    that are installed. Of several the best for each head is found by measuring when it is first loaded here."""
    precisions: str = "auto"
    """Numbers that heads may be computed with, of `fp32`, `bf16` and `fp16`, separated by commas; `auto`: all that this host has
    and whose answers are those of fp32, within a tolerance."""
    choice_budget_s: float = Field(default=20.0, gt=0, le=600)
    """About how long finding the best back end for a head may take, seconds."""
    memory_reserve_bytes: int = Field(default=256 * 1024**2, ge=0)
    """Free memory of this host that loading a head must leave, bytes; one that needs more is refused with HOST_TOO_SMALL."""
    priorities: str = ""
    """How urgent the frames of a model are beside other models', here and at tails they share: `solder-joints=5,helmets=1`,
    0 to 9; 0 for a model not named."""
    max_run_s: float = Field(default=5.0, gt=0)
    """Longest computation of one frame by the head; a longer one is stopped with DEADLINE_EXPIRED, seconds."""
    max_cache_bytes: int = Field(default=8 * 1024**3, ge=1)
    """Most that the parts kept in `data_dir` may take together, bytes; those unused for longest go first, those of a
    version that a followed alias stands for never."""
    switch_wait_s: float = Field(default=30.0, ge=0)
    """How long a new version waits for a tail to accept it before the head switches to it all the same, seconds."""
    trial_labels_s: float = Field(default=30.0, gt=0)
    """Time between two looks at what was labelled, where a version is tried that is judged by labels, seconds."""
    report_interval_s: float = Field(default=1.0, gt=0)
    """Time between two reports of outcomes to the router, seconds."""
    site: str = Field(default="default", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """The site that this head stands in: heads of a site share its uplink's budget, and its name is in the records of samples."""
    tenant: str = Field(default="default", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """The enterprise in whose name records are told to the fleet."""
    spool_max_records: int = Field(default=100_000, ge=2)
    """Most reports and records that wait in `data_dir` for a link; then the oldest of those worth least go, and are counted."""
    spool_max_bytes: int = Field(default=256 * 1024**2, ge=1024**2)
    """Likewise, bytes."""
    sample_records: bool = True
    """Records of kept samples, without their pictures, are told to the fleet; they wait while there is none."""
    max_backlog_ms: float = Field(default=100.0, gt=0)
    """How long a frame may have to wait at the least crowded tail before fewer hard samples are sent there, milliseconds."""
    samples: bool = True
    """Hard, audited and disputed samples are kept in `data_dir` with their pictures, to be labelled and trained on."""
    sample_max_bytes: int = Field(default=20 * 1024**3, ge=1)
    """Most that the pictures and features of kept samples may take, bytes; those easiest to replace go first, and are counted."""
    sample_max_records: int = Field(default=100_000, ge=1)
    """Most samples that are kept."""
    sample_bytes_per_s: int = Field(default=1024**2, ge=1)
    """Most bytes of pictures and features that are written for kept samples, each second over many seconds; half of what is saved
    up is left to samples that were disputed or audited. What comes faster is dropped and counted."""
    sample_features: bool = False
    """The features of a sample that crossed are kept beside its picture."""
    sample_sharing: str = ""
    """What of a kept sample may leave this head when it is asked for: `picture`, `thumbnail` (at most 160 pixels a side),
    `features`, separated by commas; empty: records only."""

    @field_validator("models")
    @classmethod
    def _possible_models(cls, models: str) -> str:
        if models and not models.replace(",", " ").strip():
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

    def link_policy(self) -> Policy:
        """How several tails are treated."""
        return Policy(
            by_latency=self.balance == "latency", eject_factor=self.eject_factor, hedge_budget=self.hedge_budget
        )

    @field_validator("sample_sharing")
    @classmethod
    def _known_contents(cls, sharing: str) -> str:
        if unknown := sorted(set(_split(sharing)) - SAMPLE_CONTENTS):
            raise ValueError(f"{', '.join(unknown)}: only {', '.join(sorted(SAMPLE_CONTENTS))} can be shared")
        return sharing

    @field_validator("priorities")
    @classmethod
    def _some_priorities(cls, priorities: str) -> str:
        _priorities(priorities)
        return priorities

    @model_validator(mode="after")
    def _priorities_of_models(self) -> HeadSettings:
        if unknown := sorted(_priorities(self.priorities).keys() - set(self.model_names())):
            raise ValueError(f"priorities names {', '.join(unknown)}, which is not in models")
        return self

    def replica(self, number: int) -> dict[str, object]:
        """As :meth:`ReplicaSettings.replica`: cores, places and disk are shared out."""
        places = max(1, self.max_frames // self.processes)
        return super().replica(number) | {
            "data_dir": self.data_dir / f"replica-{number}",
            "workers": max(1, self.workers // self.processes),
            "cores": max(1, self.usable_cores() // self.processes),
            "segment_threads": self.segment_threads and max(1, self.segment_threads // self.processes),
            "max_frames": places,
            "credit": min(self.credit, places),
            "max_cache_bytes": max(1, self.max_cache_bytes // self.processes),
            "sample_max_bytes": max(1, self.sample_max_bytes // self.processes),
            "sample_max_records": max(1, self.sample_max_records // self.processes),
            "sample_bytes_per_s": max(1, self.sample_bytes_per_s // self.processes),
            "spool_max_records": max(2, self.spool_max_records // self.processes),
            "spool_max_bytes": max(1024**2, self.spool_max_bytes // self.processes),
        }

    @field_validator("backends", "precisions")
    @classmethod
    def _some_of(cls, names: str) -> str:
        if not _split(names) or ("auto" in _split(names) and len(_split(names)) > 1):
            raise ValueError(f"{names!r} is neither auto nor names")
        return names

    @field_validator("precisions")
    @classmethod
    def _known_precisions(cls, names: str) -> str:
        if unknown := sorted(set(_split(names)) - {"auto", "fp32", "bf16", "fp16"}):
            raise ValueError(f"{', '.join(unknown)}: only auto, fp32, bf16 and fp16 can be asked for")
        return names

    def backend_names(self) -> tuple[str, ...]:
        """`backends` as a tuple."""
        return tuple(_split(self.backends))

    def precision_names(self) -> tuple[str, ...]:
        """`precisions` as a tuple."""
        return tuple(_split(self.precisions))

    def reference_may(self) -> bool:
        """onnxruntime may compute heads, with the processor."""
        return any(name in ("auto", "onnxruntime", "onnxruntime-cpu") for name in self.backend_names())

    def usable_cores(self) -> int:
        """`cores`, or those that this process may use."""
        own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return self.cores or own

    def priority_of(self, model: str) -> int:
        """0 to 9."""
        return _priorities(self.priorities).get(model, 0)

    def shared_contents(self) -> frozenset[str]:
        """`sample_sharing` as a set."""
        return frozenset(_split(self.sample_sharing))

    def model_names(self) -> list[str]:
        """`models` as a list."""
        return _split(self.models)


def _split(models: str) -> list[str]:
    return [name.strip() for name in models.split(",") if name.strip()]


def _priorities(text: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for entry in _split(text):
        name, _, level = (part.strip() for part in entry.partition("="))
        _check_name(name)
        if name in found:
            raise ValueError(f"{name!r} has two priorities")
        if level not in _LEVELS:
            raise ValueError(f"{entry!r} is not a model and its priority, 0 to 9, as in solder-joints=5")
        found[name] = int(level)
    return found


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not 1 to 64 of a-z, 0-9, dot, dash and underscore, beginning with a-z or 0-9")
