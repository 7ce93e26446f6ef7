"""What operators ask about hosts, and change. Knows requests; the hosts themselves are in ``directory``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from sqlalchemy import Connection

from services.fleet.messages import check_labels, check_page_size
from services.fleet.names import check_name
from services.fleet.nodes.directory import Directory
from services.fleet.nodes.records import NodeRecord
from services.fleet.sessions import Sessions
from services.fleet.targets import read_target
from services.fleet.tasks.board import TaskBoard
from splitmesh.api.fleet.v1 import fleet_pb2 as pb
from splitmesh.api.serving.v1 import serving_pb2
from splitmesh.kernel.pages import from_token, page, page_size
from splitmesh.sql.database import Threads

Forget = Callable[[Connection, str], None]
"""Forgets what one part of the fleet knows of a host, in the caller's transaction."""
Wanted = Callable[[Connection, Sequence[str]], Mapping[str, serving_pb2.HostPolicy]]
"""What hosts are to have, by name."""

MAX_PAGE_BYTES = 8 * 1024 * 1024
"""A page of hosts that serve much has fewer of them."""


class NodeDesk:
    """Answers for the hosts.

    Args:
        forget: parts that know something of hosts, beside the directory and the board.
        removed: told of each host that is gone, after the commit.
    """

    def __init__(
        self,
        threads: Threads,
        directory: Directory,
        sessions: Sessions,
        board: TaskBoard,
        wanted: Wanted,
        *,
        forget: Sequence[Forget],
        removed: Callable[[str], None],
    ) -> None:
        self._threads = threads
        self._directory = directory
        self._sessions = sessions
        self._board = board
        self._wanted = wanted
        self._forget = forget
        self._removed = removed

    async def list(self, request: pb.ListNodesRequest) -> pb.ListNodesResponse:
        """By name; FIELD_INVALID."""
        check_page_size(request.page_size)
        target = read_target(request.target) if request.HasField("target") else None
        online = {pb.NODE_STATE_ONLINE: True, pb.NODE_STATE_OFFLINE: False}.get(request.state)
        size, after = page_size(request.page_size), from_token("nodes", request.page_token)
        found = self._directory.page(target, online, after, size + 1)
        messages = await self._messages(found)
        fitting, room = 0, MAX_PAGE_BYTES
        while fitting < min(size, len(messages)) and (room := room - messages[fitting].ByteSize()) > 0:
            fitting += 1
        shown, token = page("nodes", messages, max(1, fitting), lambda one: one.node)
        return pb.ListNodesResponse(nodes=shown, next_page_token=token)

    async def get(self, request: pb.GetNodeRequest) -> pb.GetNodeResponse:
        """NODE_NOT_FOUND."""
        (message,) = await self._messages([self._directory.find(request.node)])
        return pb.GetNodeResponse(node=message)

    async def set_labels(self, request: pb.SetNodeLabelsRequest) -> pb.SetNodeLabelsResponse:
        """On disk when it returns; what labels decide follows: policies, tasks, deployments. NODE_NOT_FOUND, FIELD_INVALID."""
        check_name("node", request.node)
        check_labels("labels", request.labels)
        policies = await self._directory.set_labels(request.node, dict(request.labels))
        self._sessions.host_changed(request.node)
        self._sessions.tell_policies(policies)
        self._board.wake([request.node])
        if self._directory.is_online(request.node):
            self._directory.connected(request.node)
        (message,) = await self._messages([self._directory.find(request.node)])
        return pb.SetNodeLabelsResponse(node=message)

    async def remove(self, request: pb.RemoveNodeRequest) -> pb.RemoveNodeResponse:
        """NODE_NOT_FOUND, NODE_ONLINE."""
        node = request.node

        def others(connection: Connection) -> None:
            self._board.forget_node(connection, node)
            for forget in self._forget:
                forget(connection, node)

        await self._directory.remove(node, others)
        self._board.wake([node])
        self._removed(node)
        return pb.RemoveNodeResponse()

    async def _messages(self, records: Sequence[NodeRecord]) -> Sequence[pb.Node]:
        names = [record.node for record in records]
        policies = await self._threads.read(lambda connection: self._wanted(connection, names)) if names else {}
        return [
            record.to_message(
                online=self._directory.is_online(record.node),
                warning=self._sessions.warning(record.node),
                policy=policies.get(record.node),
            )
            for record in records
        ]
