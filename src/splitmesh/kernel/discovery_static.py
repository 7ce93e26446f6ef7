"""Discovery from a fixed table of addresses, for one machine, a lab, or a site without Consul.

Knows the table it was given and what this process registered. Does not check anybody's health: a dead address
stays in the set, and callers find out by calling.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence

from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.kernel.discovery import Instance, check_service, in_order, split_address


class StaticDiscovery:
    """A :class:`~splitmesh.kernel.discovery.Discovery` over a table; an address is also its instance's id.

    Args:
        addresses: for each service its ``host:port`` addresses, see :func:`parse_static`.

    Raises:
        MeshError: FIELD_INVALID, a name or an address cannot be one.
    """

    def __init__(self, addresses: Mapping[str, Sequence[str]] | None = None) -> None:
        table = [Instance(name, address, address) for name, found in (addresses or {}).items() for address in found]
        self._table = {(instance.service, instance.instance_id): instance for instance in table}
        self._registered: dict[tuple[str, str], _StaticRegistration] = {}
        self._changed = asyncio.Event()
        self._closed = False

    async def register(self, instance: Instance) -> _StaticRegistration:
        """Adds the instance to this process's own view; other processes do not see it."""
        self._check_open()
        registration = _StaticRegistration(self, instance)
        self._registered[instance.service, instance.instance_id] = registration
        self._wake()
        return registration

    async def resolve(self, service: str) -> tuple[Instance, ...]:
        """Table and registrations together; a registration replaces a table entry of the same id."""
        check_service(service)
        self._check_open()
        return self._current(service)

    async def watch(self, service: str) -> AsyncIterator[tuple[Instance, ...]]:
        """Yields the set now and after each change, until closed."""
        check_service(service)
        known: tuple[Instance, ...] | None = None
        while not self._closed:
            changed, current = self._changed, self._current(service)
            if current != known:
                known = current
                yield current
            else:
                await changed.wait()

    async def close(self) -> None:
        """Forgets the registrations and ends the watches."""
        self._closed = True
        self._registered.clear()
        self._wake()

    def _forget(self, registration: _StaticRegistration) -> None:
        key = (registration.instance.service, registration.instance.instance_id)
        if self._registered.get(key) is registration:
            del self._registered[key]
            self._wake()

    def _current(self, service: str) -> tuple[Instance, ...]:
        own = {key: registration.instance for key, registration in self._registered.items()}
        return in_order(instance for (name, _), instance in (self._table | own).items() if name == service)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _check_open(self) -> None:
        if self._closed:
            raise MeshError(Reason.SERVICE_UNAVAILABLE, "discovery is closed")


class _StaticRegistration:
    def __init__(self, owner: StaticDiscovery, instance: Instance) -> None:
        self._owner = owner
        self._instance = instance

    @property
    def instance(self) -> Instance:
        return self._instance

    async def deregister(self) -> None:
        self._owner._forget(self)


def parse_static(text: str, field_name: str = "static_addresses") -> dict[str, tuple[str, ...]]:
    """The table written as ``registry=127.0.0.1:7001,router=10.0.0.1:7002;10.0.0.2:7002``; blanks are ignored.

    Args:
        text: services separated by ``,``, the addresses of one by ``;``; empty for an empty table.
        field_name: what the setting is called, for errors.

    Raises:
        MeshError: FIELD_INVALID, naming the entry that is wrong.
    """
    table: dict[str, tuple[str, ...]] = {}
    for entry in text.split(",") if text.strip() else ():
        service, equals, listed = (part.strip() for part in entry.partition("="))
        if not equals:
            raise field_error(field_name, f"{entry.strip()!r} is not service=host:port")
        try:
            check_service(service)
        except MeshError as error:
            raise field_error(field_name, error.fields[0][1]) from None
        if service in table:
            raise field_error(field_name, f"{service!r} is listed twice: separate its addresses by ;")
        addresses = tuple(address.strip() for address in listed.split(";"))
        for address in addresses:
            split_address(address, field_name)
        if len(set(addresses)) != len(addresses):
            raise field_error(field_name, f"{service!r} has the same address twice")
        table[service] = addresses
    return table
