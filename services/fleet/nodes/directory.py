"""The hosts: in memory as they are now, in the database as they were a moment ago. Knows who is connected, and no stream.

That a host is there is on disk before its agent is welcomed; many that come at once are written at once. What it says often (its
figures, what it serves) is in memory first and written in groups: it says all of it again when it comes back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from functools import partial

from sqlalchemy import Connection

from services.fleet.messages import check_labels
from services.fleet.nodes import store
from services.fleet.nodes.records import NodeRecord, ServingKey, record_of, says_nothing
from services.fleet.ports import NodeObserver
from services.fleet.values import Host, Target
from splitmesh.api.fleet.v1 import fleet_pb2
from splitmesh.api.serving.v1 import serving_pb2
from splitmesh.errors import MeshError, Reason
from splitmesh.sql.database import Threads
from splitmesh.sql.times import utc_now

log = logging.getLogger(__name__)

SEEN_EVERY_S = 30.0
"""When a host was last heard of is at most so much older on disk."""

AtArrival = Callable[[Connection, Sequence[tuple[Host, int]]], Mapping[str, serving_pb2.HostPolicy]]
"""What hosts that come are to have, by name; asked in the transaction that keeps them, with the generations they hold."""

_Serving = dict[tuple[str, ServingKey], serving_pb2.ServingState | None]


class Directory:
    """Implements :class:`services.fleet.ports.Nodes`; started after its database.

    Args:
        flush_s: longest time that what hosts serve is in memory only.
        at_arrival: see :data:`AtArrival`.
    """

    def __init__(
        self,
        threads: Threads,
        *,
        flush_s: float,
        at_arrival: AtArrival = lambda _connection, _hosts: {},
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._threads = threads
        self._flush_s = flush_s
        self._at_arrival = at_arrival
        self._now = now
        self._records: dict[str, NodeRecord] = {}
        self._online: set[str] = set()
        self._policies: dict[str, serving_pb2.HostPolicy] = {}
        self._observers: list[NodeObserver] = []
        self._changed: set[str] = set()
        self._seen: set[str] = set()
        """Heard of, with nothing else that changed; to be written."""
        self._serving: _Serving = {}
        """None: no more."""
        self._coming: dict[str, fleet_pb2.Hello] = {}
        self._writing: dict[str, fleet_pb2.Hello] = {}
        """Those that have come and are not on disk yet."""
        self._arrived: asyncio.Future[None] | None = None
        self._arriving: asyncio.Task[None] | None = None
        self._flushing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Reads what was known."""
        self._records = {record.node: record for record in await self._threads.read(store.read_all)}
        self._flushing = asyncio.create_task(self._flush_on())

    async def stop(self) -> None:
        """What was told to it is written, as far as the database takes it."""
        running = [task for task in (self._flushing, self._arriving) if task is not None]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        if self._flushing is not None:
            with suppress(MeshError):
                await self.flush()
        self._flushing = self._arriving = None

    # ---- ports.Nodes

    def hosts(self, connection: Connection, target: Target) -> list[Host]:
        """See the port."""
        return store.hosts(connection, target)

    def is_online(self, node: str) -> bool:
        """See the port."""
        return node in self._online

    def serving(self, node: str) -> Sequence[serving_pb2.ServingState]:
        """See the port."""
        record = self._records.get(node)
        return list(record.serving.values()) if record else []

    def observe(self, observer: NodeObserver) -> None:
        """See the port."""
        self._observers.append(observer)

    # ---- hosts

    async def arrive(self, hello: fleet_pb2.Hello) -> None:
        """A host is there; on disk when this returns."""
        self._coming[hello.node] = hello
        if self._arrived is None:
            self._arrived = asyncio.get_running_loop().create_future()
            if self._arriving is None or self._arriving.done():
                self._arriving = asyncio.create_task(self._write_arrivals())
        await asyncio.shield(self._arrived)

    def connected(self, node: str) -> None:
        """Its agent is connected, and what it has is known."""
        self._online.add(node)
        states = self.serving(node)
        for observer in self._observers:
            observer.serving_changed(node, states)
        for observer in self._observers:
            observer.connected(node)

    def disconnected(self, node: str) -> None:
        """Its agent is gone."""
        self._online.discard(node)
        for observer in self._observers:
            observer.disconnected(node)

    def heard(self, node: str, metrics: fleet_pb2.Heartbeat | None = None) -> None:
        """It said something, and perhaps its figures."""
        record = self.find(node)
        record.seen_time = self._now()
        if metrics is not None:
            record.metrics = metrics

    def can(self, node: str, capabilities: fleet_pb2.Capabilities) -> None:
        """It has changed."""
        self.find(node).capabilities = capabilities
        self._changed.add(node)

    def serves(self, node: str, states: Sequence[serving_pb2.ServingState], gone: Sequence[str]) -> None:
        """What its heads serve has changed: first models go, then states come. One that says nothing ends what its head said."""
        serving = self.find(node).serving
        for key in [key for key in serving if key[0] in gone]:
            del serving[key]
            self._serving[node, key] = None
        for state in states:
            key = (state.model, state.node)
            if says_nothing(state):
                serving.pop(key, None)
                self._serving[node, key] = None
            else:
                serving[key] = self._serving[node, key] = state
        for observer in self._observers:
            observer.serving_changed(node, states)

    def policies_changed(self, policies: Mapping[str, serving_pb2.HostPolicy]) -> None:
        """What hosts are to have now."""
        for node, policy in policies.items():
            if policy.generation > self.policy(node).generation:
                self._policies[node] = policy

    # ---- reading

    def policy(self, node: str) -> serving_pb2.HostPolicy:
        """What it is to have, as far as that was found out since the start; without a generation: nothing."""
        return self._policies.get(node) or serving_pb2.HostPolicy()

    def find(self, node: str) -> NodeRecord:
        """NODE_NOT_FOUND."""
        record = self._records.get(node)
        if record is None:
            raise MeshError(Reason.NODE_NOT_FOUND, f"there is no host {node!r}", metadata={"node": node})
        return record

    def page(self, target: Target | None, online: bool | None, after: str, limit: int) -> list[NodeRecord]:
        """By name, after one."""
        found: list[NodeRecord] = []
        for node in sorted(name for name in self._records if name > after):
            record = self._records[node]
            if online is not None and online != (node in self._online):
                continue
            if target is None or target.fits(record.host()):
                found.append(record)
                if len(found) == limit:
                    break
        return found

    # ---- changing

    async def set_labels(self, node: str, labels: Mapping[str, str]) -> Mapping[str, serving_pb2.HostPolicy]:
        """An operator's; an empty value takes one away. On disk when it returns what the host is to have then. NODE_NOT_FOUND."""
        record = self.find(node)
        merged = {name: value for name, value in {**record.operator_labels, **labels}.items() if value}
        check_labels("labels", merged)
        changed = replace(record, operator_labels=merged)

        def work(connection: Connection) -> Mapping[str, serving_pb2.HostPolicy]:
            store.write(connection, [], [changed])
            return self._at_arrival(connection, [(changed.host(), 0)])

        policies = await self._threads.write(work)
        # It may have come again meanwhile, as a record that knows nothing of this.
        self.find(node).operator_labels = merged
        self._changed.add(node)
        return policies

    async def remove(self, node: str, others: Callable[[Connection], None]) -> None:
        """Forgets it, and in the same transaction what ``others`` do; NODE_NOT_FOUND, NODE_ONLINE."""
        record = self.find(node)
        if node in self._online or node in self._coming or node in self._writing:
            raise MeshError(Reason.NODE_ONLINE, f"the agent of {node} is connected", metadata={"node": node})

        def work(connection: Connection) -> None:
            others(connection)
            store.forget(connection, node)

        # Before it is written: if it comes back meanwhile, it is one that was never seen.
        del self._records[node]
        self._policies.pop(node, None)
        self._changed.discard(node)
        self._unwritten(node)
        try:
            await self._threads.write(work)
        except MeshError:
            self._records.setdefault(node, record)
            raise

    async def flush(self) -> None:
        """Writes what has changed."""
        nodes, seen, serving = self._changed, self._seen - self._changed, self._serving
        self._changed, self._seen, self._serving = set(), set(), {}
        records = [replace(self._records[node]) for node in nodes if node in self._records]
        heard = [replace(self._records[node]) for node in seen if node in self._records]
        changed = {key: state for key, state in serving.items() if state is not None and key[0] in self._records}
        gone = [key for key, state in serving.items() if state is None]

        def work(connection: Connection) -> None:
            store.write(connection, [], records)
            store.write_seen(connection, heard)
            store.write_serving(connection, changed, gone)

        if not (records or heard or serving):
            return
        try:
            await self._threads.write(work)
        except BaseException:
            self._changed |= nodes
            self._seen |= seen
            self._serving = {**serving, **self._serving}
            raise

    # ---- writing

    async def _write_arrivals(self) -> None:
        while self._arrived is not None:
            coming, done = self._coming, self._arrived
            self._coming, self._arrived, self._writing = {}, None, coming
            now = self._now()
            fresh: list[NodeRecord] = []
            known: list[NodeRecord] = []
            seen: list[NodeRecord] = []
            serving: dict[tuple[str, ServingKey], serving_pb2.ServingState] = {}
            gone: list[tuple[str, ServingKey]] = []
            unwritten: _Serving = {}
            waiting = {node for node, _ in self._serving}
            for node, hello in coming.items():
                before = self._records.get(node)
                record = record_of(hello, now, before)
                same = before is not None and node not in self._changed and record.says_the_same(before)
                (seen if same else known if before else fresh).append(record)
                old = before.serving if before else {}
                pending = self._unwritten(node) if node in waiting else {}
                unwritten.update(pending)
                for key, state in record.serving.items():
                    if state != old.get(key) or (node, key) in pending:
                        serving[node, key] = state
                stale = {(node, key) for key in old} | pending.keys()
                gone.extend(one for one in stale if one[1] not in record.serving)
            records = fresh + known + seen
            held = [(record.host(), coming[record.node].policy_generation) for record in records]
            try:
                policies = await self._threads.write(
                    partial(self._keep, fresh=fresh, known=known, serving=serving, gone=gone, held=held)
                )
            except BaseException as error:
                known_error = error if isinstance(error, MeshError) else MeshError(Reason.INTERNAL, "not written")
                self._serving = {**unwritten, **self._serving}
                done.set_exception(known_error)
                done.exception()  # seen, also where all who waited have left
                if not isinstance(error, Exception):
                    raise
                if not isinstance(error, MeshError):
                    log.exception("hosts could not be written")
                continue
            finally:
                self._writing = {}
            for record in records:
                before = self._records.get(record.node)
                if before is not None:
                    record.operator_labels = before.operator_labels
                self._records[record.node] = record
            self._seen.update(record.node for record in seen)
            self.policies_changed(policies)
            done.set_result(None)

    def _unwritten(self, node: str) -> _Serving:
        """What was to be written of what a host serves, and is not any more."""
        found = {key: state for key, state in self._serving.items() if key[0] == node}
        for key in found:
            del self._serving[key]
        return found

    def _keep(
        self,
        connection: Connection,
        fresh: Sequence[NodeRecord],
        known: Sequence[NodeRecord],
        serving: Mapping[tuple[str, ServingKey], serving_pb2.ServingState],
        gone: Sequence[tuple[str, ServingKey]],
        held: Sequence[tuple[Host, int]],
    ) -> Mapping[str, serving_pb2.HostPolicy]:
        store.write(connection, fresh, known)
        store.write_serving(connection, serving, gone)
        return self._at_arrival(connection, held)

    async def _flush_on(self) -> None:
        flushes = 0
        while True:
            await asyncio.sleep(self._flush_s)
            flushes += 1
            if flushes * self._flush_s >= SEEN_EVERY_S:
                flushes = 0
                self._seen |= self._online
            try:
                await self.flush()
            except MeshError as error:
                log.warning("what hosts serve was not written: %s", error.message)
            except Exception:
                # It is written the next time; a task that ended here would be missed by nobody.
                log.exception("what hosts serve could not be written")
