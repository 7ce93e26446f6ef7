"""The port by which services find each other: register, resolve, watch.

Knows what an instance is and what every adapter promises. Does not know where the addresses come from:
``discovery_static`` (a fixed table) and ``discovery_consul`` (a Consul agent) do. Discovery is a hint:
who really answers at an address shows only in the call; there are no certificates yet by which a peer proves itself.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from splitmesh.errors import field_error

_SERVICE = re.compile(r"[a-z][a-z0-9-]{0,47}")
_INSTANCE_ID = re.compile(r"[A-Za-z0-9\[][A-Za-z0-9._:\[\]-]{0,127}")
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]")
_META_KEY = re.compile(r"[A-Za-z0-9_-]{1,128}")
_MAX_TAGS = 64
_MAX_METADATA = 64
_MAX_VALUE_CHARS = 512
"""Sizes every known catalogue accepts (Consul's own limits on service metadata)."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One running copy of a service.

    Raises:
        MeshError: FIELD_INVALID, an element is outside what every adapter can store.
    """

    service: str
    """Which service it is a copy of, such as ``registry``: lower case, digits and ``-``, at most 48 characters."""
    instance_id: str
    """Unique among the service's copies; at most 128 of letters, digits and ``._:[]-``."""
    address: str
    """Where it answers gRPC, ``host:port``; an IPv6 host in brackets."""
    tags: tuple[str, ...] = ()
    """At most 64 words of at most 512 characters to choose by."""
    metadata: Mapping[str, str] = field(default_factory=dict, hash=False)
    """At most 64 details; keys of letters, digits, ``_`` and ``-``; values of at most 512 characters."""

    def __post_init__(self) -> None:
        check_service(self.service)
        if not _INSTANCE_ID.fullmatch(self.instance_id):
            raise field_error("instance_id", f"{self.instance_id!r} is not 1 to 128 of letters, digits and ._:[]-")
        split_address(self.address)
        if len(self.tags) > _MAX_TAGS or not all(_storable(tag) for tag in self.tags):
            raise field_error("tags", f"more than {_MAX_TAGS}, or one is empty, too long or not printable")
        if len(self.metadata) > _MAX_METADATA:
            raise field_error("metadata", f"{len(self.metadata)} entries, at most {_MAX_METADATA} are kept")
        for key, value in self.metadata.items():
            if not _META_KEY.fullmatch(key) or (value and not _storable(value)):
                raise field_error("metadata", f"entry {key!r} has a key or a value no catalogue can keep")
        object.__setattr__(self, "tags", tuple(self.tags))
        object.__setattr__(self, "metadata", dict(self.metadata))


class Registration(Protocol):
    """One instance's entry in the catalogue, held by the process that made it."""

    @property
    def instance(self) -> Instance:
        """What was registered."""

    async def deregister(self) -> None:
        """Takes the entry out. A second call, and one after the id was registered anew, changes nothing.

        Raises:
            MeshError: SERVICE_UNAVAILABLE, the catalogue does not answer; the entry is no longer kept alive
                from here and goes when its health check has failed for long enough.
        """


class Discovery(Protocol):
    """What every adapter does; ``tests/contract/test_discovery.py`` holds each of them to it."""

    async def register(self, instance: Instance) -> Registration:
        """Enters an instance that already answers. The same service and id again replaces the earlier entry.

        Raises:
            MeshError: SERVICE_UNAVAILABLE, the catalogue does not answer or refuses; try again.
        """

    async def resolve(self, service: str) -> tuple[Instance, ...]:
        """The instances thought healthy now, ordered by id then address; empty when none is known.

        Raises:
            MeshError: FIELD_INVALID, not a service's name; SERVICE_UNAVAILABLE, the catalogue does not answer.
        """

    def watch(self, service: str) -> AsyncIterator[tuple[Instance, ...]]:
        """The current set, then the set after each change; several changes in a row may arrive as one.

        Ends only when the discovery is closed. While the catalogue does not answer nothing is yielded, so the last
        set stays in force; an empty set means that the catalogue answers and knows nobody healthy.

        Raises:
            MeshError: FIELD_INVALID, not a service's name.
        """

    async def close(self) -> None:
        """Takes out what was registered here and ends every watch; afterwards calls are SERVICE_UNAVAILABLE."""


def check_service(service: str) -> None:
    """Refuses what cannot be a service's name (FIELD_INVALID)."""
    if not _SERVICE.fullmatch(service):
        raise field_error("service", f"{service!r} is not a lower-case name of letters, digits and - (at most 48)")


def split_address(address: str, field_name: str = "address") -> tuple[str, int]:
    """Host (an IPv6 one without brackets) and port of ``host:port``.

    Raises:
        MeshError: FIELD_INVALID, naming ``field_name``.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not _HOST.fullmatch(host):
        raise field_error(field_name, f"{address!r} is not host:port")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536):
        raise field_error(field_name, f"{address!r} has no port between 1 and 65535")
    return host.strip("[]"), int(port)


def join_address(host: str, port: int) -> str:
    """The inverse of :func:`split_address`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def in_order(instances: Iterable[Instance]) -> tuple[Instance, ...]:
    """The one order in which adapters hand out instances."""
    return tuple(sorted(instances, key=lambda instance: (instance.instance_id, instance.address)))


def _storable(text: str) -> bool:
    return 0 < len(text) <= _MAX_VALUE_CHARS and text.isprintable()
