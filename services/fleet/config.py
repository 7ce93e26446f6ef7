"""What an operator can set on the fleet, with units and defaults. Every limit here bounds memory, disk or time."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from splitmesh.kernel.config import ServiceSettings, data_dir_default

MIB = 1024 * 1024
GIB = 1024 * MIB


class FleetSettings(ServiceSettings):
    """Where the fleet keeps its state and how much it takes on at once."""

    # What is refused is not quoted: it may hold a password.
    model_config = SettingsConfigDict(hide_input_in_errors=True)

    # ---- store
    data_dir: Path = Field(default_factory=lambda: data_dir_default("fleet"))
    """Folder of the database; one process at a time uses it."""
    database_url: SecretStr = SecretStr("")
    """Database of the fleet, such as `postgresql+psycopg://user:password@host/fleet`; empty: SQLite in `data_dir`."""
    database_wait_s: float = Field(default=5.0, ge=0)
    """For PostgreSQL: longest wait at start for another fleet service to let go of the database, seconds."""
    max_records: int = Field(default=10_000_000, ge=1)
    """Records of hosts that are kept; more are refused with STORAGE_FULL, and stay in the hosts' spools."""
    max_records_bytes: int = Field(default=16 * GIB, ge=1)
    """Bytes of the kept records' bodies together; more are refused in the same way."""
    max_commits: int = Field(default=32, ge=1)
    """Calls that hand over records at once, at most 4 MiB each; one more is refused with QUEUE_FULL."""

    # ---- agents
    max_agents: int = Field(default=10_000, ge=1)
    """Agents connected at once; one more is refused with QUEUE_FULL."""
    hello_s: float = Field(default=10.0, gt=0)
    """A stream that does not begin with hello within this ends with DEADLINE_EXPIRED, seconds."""
    heartbeat_s: float = Field(default=5.0, gt=0)
    """Agents say that they are there so often, seconds; one that misses three is taken for gone."""
    flush_s: float = Field(default=2.0, gt=0)
    """Longest time that what hosts serve, and how far tasks are, is in memory only, seconds."""
    max_concurrent_rpcs: int = Field(default=12_000, ge=1)
    """Calls in progress over all connections, agents included; one more is refused with RESOURCE_EXHAUSTED."""

    # ---- tasks
    lease_s: float = Field(default=30.0, gt=0)
    """A task of which its host says nothing for so long is offered again, seconds."""
    max_tasks_waiting: int = Field(default=100_000, ge=1)
    """Tasks that wait for a host; more are refused with QUEUE_FULL."""
    keep_ended_s: float = Field(default=30 * 24 * 3600.0, gt=0)
    """Tasks that ended longer ago are forgotten, seconds, but for those that were submitted with a request's id."""
    max_watchers: int = Field(default=1024, ge=1)
    """Followers of tasks at once, and of deployments; one more is refused with QUEUE_FULL."""
    watch_stream_s: float = Field(default=900.0, gt=0)
    """Longest life of one watch, seconds; it then ends without an error and the client asks again."""

    @model_validator(mode="after")
    def _room_for_others(self) -> FleetSettings:
        if self.max_concurrent_rpcs <= self.max_agents:
            raise ValueError(
                f"max_concurrent_rpcs ({self.max_concurrent_rpcs}) leaves no room beside max_agents ({self.max_agents})"
            )
        return self
