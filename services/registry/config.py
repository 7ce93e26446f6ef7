"""What an operator can set on the registry, with units and defaults. Every limit here bounds memory, disk or time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from splitmesh.kernel.config import ServiceSettings, data_dir_default

MIB = 1024 * 1024
GIB = 1024 * MIB


class RegistrySettings(ServiceSettings):
    """Where the registry keeps its state and how much it takes on at once."""

    # What is refused is not quoted: it may hold a password.
    model_config = SettingsConfigDict(hide_input_in_errors=True)

    data_dir: Path = Field(default_factory=lambda: data_dir_default("registry"))
    """Folder of the metadata, the artefacts and unfinished uploads; one process at a time uses it."""
    database_url: SecretStr = SecretStr("")
    """Database of the metadata, such as `postgresql+psycopg://user:password@host/registry`; empty: SQLite in `data_dir`."""
    database_wait_s: float = Field(default=5.0, ge=0)
    """For PostgreSQL: longest wait at start for another registry to let go of the database, seconds; a standby waits long."""
    contents_url: str = ""
    """Where artefacts and pictures are kept, such as `s3://bucket/prefix`; empty: in `data_dir`."""
    contents_options: SecretStr = SecretStr("{}")
    """For `contents_url`: what fsspec needs, a JSON object such as `{"endpoint_url": ..., "key": ..., "secret": ...}`."""
    contents_adopt: bool = False
    """Start although the contents say that they belong to another database, and take them over: after a move or a restore, and
    only when no other registry uses them. None of them is garbage before ``garbage_min_age_s`` after the start."""

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
    scrub_every_s: float = Field(default=30 * 24 * 3600.0, ge=0)
    """Every stored content is read again once in so long that the registry runs, seconds, and set aside when it is damaged; 0:
    never. A bucket is left to itself."""

    max_downloads: int = Field(default=64, ge=1)
    """Downloads in progress at once, each holding up to 1 MiB of memory; one more is refused with QUEUE_FULL."""
    transfer_bytes_per_s: float = Field(default=0.0, ge=0)
    """Most bytes of content a second that come, and that go out, over all callers and some seconds; 0: no limit. At once go no
    more transfers than can have 64 KiB a second each; one more is refused with QUEUE_FULL."""
    max_delta_bytes: int = Field(default=256 * MIB, ge=0)
    """Largest content that patches are made of or for; beyond it: FRAME_TOO_LARGE, and the whole is sent."""
    max_delta_share: float = Field(default=0.5, gt=0, le=1)
    """A patch larger than this share of the whole is not offered."""
    max_deltas: int = Field(default=1, ge=1)
    """Patches made or applied at once, each with a few times `max_delta_bytes` of memory; one more is refused with QUEUE_FULL."""

    garbage_every_s: float = Field(default=6 * 3600.0, gt=0)
    """Time between two removals of contents that nothing names, seconds; the first is an hour after the start, or sooner."""
    garbage_min_age_s: float = Field(default=24 * 3600.0, ge=0)
    """Such contents stay for so long after somebody pushed or asked for them, seconds: a version may be made of them. What came
    before the start stays for an hour of it at least."""

    max_concurrent_rpcs: int = Field(default=12_000, ge=1)
    """Calls in progress over all connections, watchers included; one more is refused with RESOURCE_EXHAUSTED."""
    max_watchers: int = Field(default=10_000, ge=1)
    """Watchers of aliases at once; one more is refused with QUEUE_FULL."""
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

    @field_validator("contents_options")
    @classmethod
    def _an_object(cls, value: SecretStr) -> SecretStr:
        try:
            options = json.loads(value.get_secret_value() or "{}")
        except ValueError:
            options = None
        if not isinstance(options, dict):
            raise ValueError("is no JSON object") from None
        return value

    @model_validator(mode="after")
    def _room_for_others(self) -> RegistrySettings:
        if self.max_concurrent_rpcs <= self.max_watchers:
            raise ValueError(
                f"max_concurrent_rpcs ({self.max_concurrent_rpcs}) leaves no room beside max_watchers ({self.max_watchers})"
            )
        return self

    def storage_options(self) -> dict[str, Any]:
        """`contents_options` as fsspec takes it."""
        options: dict[str, Any] = json.loads(self.contents_options.get_secret_value() or "{}")
        return options
