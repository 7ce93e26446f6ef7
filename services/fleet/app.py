"""Where the fleet's objects meet."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from uuid import uuid4

from sqlalchemy import Connection

from services.fleet.config import FleetSettings
from services.fleet.nodes.desk import NodeDesk
from services.fleet.nodes.directory import Directory
from services.fleet.policies.policies import HostPolicies
from services.fleet.records.records import Records
from services.fleet.records.values import Bounds
from services.fleet.rollout.controller import Rollouts
from services.fleet.schema import open_database
from services.fleet.servicer import FleetServicer, Parts
from services.fleet.sessions import Sessions, StreamTimes
from services.fleet.tasks.board import TaskBoard
from services.fleet.tasks.following import Followers
from services.fleet.tasks.making import Maker
from services.fleet.values import Host
from splitmesh.api.fleet.v1 import fleet_pb2
from splitmesh.api.fleet.v1.fleet_pb2_grpc import add_FleetServiceServicer_to_server
from splitmesh.api.serving.v1 import serving_pb2
from splitmesh.client.trust import registry_client
from splitmesh.kernel.lifecycle import App, Kernel, Part
from splitmesh.kernel.server import Binding
from splitmesh.kernel.streams import Drain
from splitmesh.sql.database import Threads
from splitmesh.sql.folder_lock import FolderLock
from splitmesh.sql.times import utc_now

ABOUT = "Knows every host by its agent's stream, gives hosts tasks, and brings versions to many of them step by step."

SWITCH_S = 1e-4
"""Longest time that one thread keeps the interpreter from another. The thread of the database gives it up at every row and waits
for it again: with Python's 5 ms it gets through 200 rows a second while thousands of agents keep the event loop busy."""

SERVICE_NAME = fleet_pb2.DESCRIPTOR.services_by_name["FleetService"].full_name


def build(settings: FleetSettings, kernel: Kernel) -> App:
    """The fleet, not started."""
    sys.setswitchinterval(SWITCH_S)
    drain = Drain()
    threads = open_database(settings, kernel.give_up)

    def at_arrival(connection: Connection, hosts: Sequence[tuple[Host, int]]) -> dict[str, serving_pb2.HostPolicy]:
        return policies.for_hosts(connection, hosts)

    directory = Directory(threads, flush_s=settings.flush_s, at_arrival=at_arrival)
    board = _board(settings, threads, drain)
    sessions = Sessions(
        directory,
        board,
        times=StreamTimes(settings.hello_s, settings.heartbeat_s, settings.lease_s),
        max_agents=settings.max_agents,
        drain=drain,
    )
    policies = HostPolicies(threads, directory, sessions.tell_policies)
    rollouts = Rollouts(
        threads,
        directory,
        board,
        registry_client(settings, kernel.channels),
        drain=drain,
        max_watchers=settings.max_watchers,
        watch_stream_s=settings.watch_stream_s,
    )
    desk = NodeDesk(
        threads,
        directory,
        sessions,
        board,
        policies.wanted,
        forget=[rollouts.forget_node],
        removed=rollouts.node_removed,
    )
    records = Records(
        threads, Bounds(settings.max_records, settings.max_records_bytes), max_commits=settings.max_commits
    )
    servicer = FleetServicer(Parts(sessions, desk, board, records, policies, rollouts))
    binding = Binding(SERVICE_NAME, lambda server: add_FleetServiceServicer_to_server(servicer, server))
    parts: list[Part] = [FolderLock(settings.data_dir, "fleet"), threads, directory, board, rollouts]
    return App("fleet", [binding], parts, drain)


def _board(settings: FleetSettings, threads: Threads, drain: Drain) -> TaskBoard:
    return TaskBoard(
        threads,
        Maker(utc_now, lambda: uuid4().hex, settings.max_tasks_waiting),
        Followers(drain, most=settings.max_watchers, stream_s=settings.watch_stream_s),
        lease_s=settings.lease_s,
        flush_s=settings.flush_s,
        keep_ended_s=settings.keep_ended_s,
        clock=time.monotonic,
    )
