"""Which mesh a command talks to: the same environment variables as the services, ports of this machine by default."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from splitmesh.client import Mesh
from splitmesh.client.rate import Rate
from splitmesh.client.registry import RegistryClient, VersionInfo
from splitmesh.errors import field_error
from splitmesh.kernel.channels import Channels
from splitmesh.kernel.config import ENV_PREFIX, ServiceSettings
from splitmesh.kernel.lifecycle import make_discovery
from splitmesh.kernel.ports import PORTS, local_addresses

BYTES_PER_MBIT = 125_000
_REFERENCE = re.compile(r"(?P<model>[a-z0-9][a-z0-9._-]*)(?::(?P<version>[0-9]+)|@(?P<alias>[a-z0-9][a-z0-9._-]*))?")


@asynccontextmanager
async def channels() -> AsyncIterator[Channels]:
    """Channels to the mesh the environment names (SPLITMESH_DISCOVERY, _STATIC_ADDRESSES, _CONSUL_ADDRESS)."""
    settings = mesh_settings()
    if settings.discovery == "static" and not settings.static_addresses:
        settings = settings.model_copy(update={"static_addresses": local_addresses()})
    opened = Channels(make_discovery(settings), max_frame_bytes=settings.max_frame_bytes)
    try:
        yield opened
    finally:
        await opened.close()
        await opened.discovery.close()


def mesh_settings() -> ServiceSettings:
    """What the environment says, as for a service; FIELD_INVALID with the variable's name."""
    try:
        return ServiceSettings()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise field_error(f"{ENV_PREFIX}{'.'.join(map(str, first['loc']))}".upper(), first["msg"]) from error


def registry_of(opened: Channels, limit_mbit: float | None = None) -> RegistryClient:
    """The registry of this mesh, which verifies and signs as SPLITMESH_TRUST_ROOT and SPLITMESH_SIGNING_KEY say.

    Args:
        opened: of :func:`channels`.
        limit_mbit: most that all transfers together take of the link, Mbit/s; None: as much as there is.
    """
    settings, trust = mesh_settings(), None
    if settings.trust_root is not None or settings.signing_key is not None:
        # Here, since the keys need a package that a camera's gateway does not.
        from splitmesh.client.trust import trust_for

        trust = trust_for(settings, opened)
    rate = None if limit_mbit is None else Rate(limit_mbit * BYTES_PER_MBIT)
    return RegistryClient(opened, trust=trust, rate=rate)


def gateway(heads: str, **options: Any) -> Mesh:
    """A gateway's connection to the heads named, else to those of SPLITMESH_HEAD, else to those that Consul knows where
    SPLITMESH_DISCOVERY is consul, else to the head's port on this machine."""
    heads = heads or os.environ.get(f"{ENV_PREFIX}HEAD", "")
    if heads:
        return Mesh(heads, **options)
    settings = mesh_settings()
    if settings.discovery == "consul":
        return Mesh(consul_address=settings.consul_address, consul_token=settings.consul_token, **options)
    return Mesh(f"127.0.0.1:{PORTS['head']}", **options)


async def find_version(registry: RegistryClient, reference: str) -> VersionInfo:
    """``NAME``, ``NAME:3`` or ``NAME@alias`` as a version; the newest when only the name is given."""
    found = _REFERENCE.fullmatch(reference)
    if found is None:
        raise field_error("model", f"{reference!r} is not NAME, NAME:VERSION or NAME@ALIAS")
    version = int(found["version"]) if found["version"] else None
    return await registry.get_version(found["model"], version, alias=found["alias"])


def is_file(model: str) -> bool:
    """Whether the argument means a file rather than a name in the registry."""
    return model.endswith(".onnx") or Path(model).is_file()
