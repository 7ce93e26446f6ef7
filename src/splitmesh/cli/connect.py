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
from splitmesh.client.registry import RegistryClient, VersionInfo
from splitmesh.errors import field_error
from splitmesh.kernel.channels import Channels
from splitmesh.kernel.config import ENV_PREFIX, ServiceSettings
from splitmesh.kernel.lifecycle import make_discovery
from splitmesh.kernel.ports import PORTS, local_addresses

_REFERENCE = re.compile(r"(?P<model>[a-z0-9][a-z0-9._-]*)(?::(?P<version>[0-9]+)|@(?P<alias>[a-z0-9][a-z0-9._-]*))?")


@asynccontextmanager
async def channels() -> AsyncIterator[Channels]:
    """Channels to the mesh the environment names (SPLITMESH_DISCOVERY, _STATIC_ADDRESSES, _CONSUL_ADDRESS)."""
    settings = _settings()
    if settings.discovery == "static" and not settings.static_addresses:
        settings = settings.model_copy(update={"static_addresses": local_addresses()})
    opened = Channels(make_discovery(settings), max_frame_bytes=settings.max_frame_bytes)
    try:
        yield opened
    finally:
        await opened.close()
        await opened.discovery.close()


def _settings() -> ServiceSettings:
    try:
        return ServiceSettings()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise field_error(f"{ENV_PREFIX}{'.'.join(map(str, first['loc']))}".upper(), first["msg"]) from error


def gateway(heads: str, **options: Any) -> Mesh:
    """A gateway's connection to the heads named, else to those of SPLITMESH_HEAD, else to those that Consul knows where
    SPLITMESH_DISCOVERY is consul, else to the head's port on this machine."""
    heads = heads or os.environ.get(f"{ENV_PREFIX}HEAD", "")
    if heads:
        return Mesh(heads, **options)
    settings = _settings()
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
