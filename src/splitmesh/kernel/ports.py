"""The port of every service, in one table: compose files, defaults of the CLI and the docs follow it."""

from __future__ import annotations

PORTS = {
    "registry": 7001,
    "partitioner": 7002,
    "compressor": 7003,
    "router": 7004,
    "fleet": 7005,
    "head": 7010,
    "agent": 7011,
    "tail": 7020,
}


def local_addresses() -> str:
    """Every service on this machine, in the form of the `static_addresses` setting."""
    return ",".join(f"{service}=127.0.0.1:{port}" for service, port in PORTS.items())
