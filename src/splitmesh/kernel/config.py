"""Settings every service has. Each is an environment variable ``SPLITMESH_<FIELD>``; a service adds its own fields.

One process is one service, so the prefix is shared; ``python -m services.registry --help`` prints the table.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

ENV_PREFIX = "SPLITMESH_"


class ServiceSettings(BaseSettings):
    """Where a service listens, whom it asks for others, and its limits."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", use_attribute_docstrings=True)

    host: str = "127.0.0.1"
    """Address to bind. Containers set 0.0.0.0."""
    port: int = Field(default=0, ge=0, le=65535)
    """Port to bind; 0 picks a free one."""
    advertise_host: str = ""
    """Address told to discovery; empty means `host`, or this machine's name where `host` is 0.0.0.0."""
    node: str = Field(default_factory=socket.gethostname, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """This node's name in answers, traces and counts: letters, digits, dot, dash, underscore."""
    ready_file: Path | None = None
    """When set, a JSON file `{"address", "pid"}` is written here, atomically, once the service is running."""

    discovery: Literal["static", "consul"] = "static"
    """How other services are found."""
    static_addresses: str = ""
    """For `static`: `registry=127.0.0.1:7001,tail=10.0.0.1:7002;10.0.0.2:7002`."""
    consul_address: str = "127.0.0.1:8500"
    """For `consul`: the local agent."""
    consul_token: str = Field(default="", repr=False)
    """For `consul`: ACL token of this service."""
    consul_check_interval_s: float = Field(default=5.0, ge=1)
    """For `consul`: time between two health checks of this service by the agent, seconds."""

    otlp_endpoint: str = ""
    """`host:port` of an OTLP/gRPC receiver (collector or Jaeger); empty: spans are made but not exported."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Least severe log line that is written (JSON lines on standard error)."""

    reflection: bool = False
    """Serve gRPC reflection, so that grpcurl and `buf curl` need no protos. Shows the whole API: for development only."""
    trust_root: Path | None = None
    """PEM file of the root keys that keyrings must be signed by. When set, a version that no trusted key signed is not
    used; unset: nothing is verified beyond digests."""
    signing_key: Path | None = None
    """PEM file of this service's private key, Ed25519. When set, the versions it makes are signed."""

    max_frame_bytes: int = Field(default=32 * 1024 * 1024, ge=1024, le=512 * 1024 * 1024)
    """Largest tensor, picture or frame accepted; larger ones are refused with FRAME_TOO_LARGE."""
    max_concurrent_streams: int = Field(default=256, ge=1)
    """HTTP/2 streams one connection may have open at once (bounds rapid-reset floods)."""
    max_concurrent_rpcs: int = Field(default=4096, ge=1)
    """Calls in progress over all connections; one more is refused with RESOURCE_EXHAUSTED."""
    default_deadline_s: float = Field(default=30.0, gt=0)
    """Deadline of a unary call whose caller set none, seconds."""
    drain_s: float = Field(default=10.0, ge=0)
    """Longest wait for calls in progress at shutdown, seconds."""

    @field_validator("trust_root", "signing_key", mode="before")
    @classmethod
    def _empty_is_unset(cls, value: object) -> object:
        """As a compose file says that nothing is set."""
        return None if value == "" else value


def data_dir_default(service: str) -> Path:
    """Where a service keeps its state unless told otherwise: `$XDG_STATE_HOME/splitmesh/<service>`."""
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "splitmesh" / service


def describe_settings(settings: type[ServiceSettings]) -> str:
    """One paragraph per setting: variable, default, meaning."""
    lines = []
    for name, field in settings.model_fields.items():
        default = "(computed)" if field.default_factory else repr(field.default)
        lines.append(f"{ENV_PREFIX}{name.upper()}  default {default}\n    {field.description}")
    return "\n".join(lines)
