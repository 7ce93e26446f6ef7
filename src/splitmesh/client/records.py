"""A head's side of the fleet's records: hands over what it has spooled. Committing a record twice keeps it once.

Knows messages; when what is handed over, and what is done with an answer, is ``edge/head/spooling.py``'s.
"""

from __future__ import annotations

from collections.abc import Sequence

from splitmesh.api.fleet.v1 import fleet_pb2 as pb
from splitmesh.api.fleet.v1 import fleet_pb2_grpc
from splitmesh.kernel.channels import Channels, mesh_errors
from splitmesh.spool.values import Drops, Record

SERVICE = "fleet"
COMMIT_S = 10.0
"""For one call."""
MAX_RECORDS = 1000
MAX_BYTES = 4 << 20
"""Of the bodies, in one call."""


class RecordsClient:
    """Calls FleetService. Its method raises the service's MeshErrors, see its proto."""

    def __init__(self, channels: Channels, *, tenant: str = "", service: str = SERVICE) -> None:
        """``service``: the fleet's name in discovery."""
        self._channels = channels
        self._tenant = tenant
        self._service = service

    async def commit(self, edge: str, records: Sequence[Record], dropped: Drops) -> int:
        """All of them are on disk in the cloud when it returns; how many were not there before.

        Args:
            edge: the head's name.
            records: at most 1,000, and 4 MiB together.
            dropped: by reason, in the life of these counts.
        """
        request = pb.CommitRecordsRequest(
            tenant=self._tenant,
            edge=edge,
            records=[_message(record) for record in records],
            dropped=dropped.by_reason,
            dropped_life=dropped.life,
        )
        async with mesh_errors():
            stub = fleet_pb2_grpc.FleetServiceStub(await self._channels.to(self._service))
            response = await stub.CommitRecords(request, timeout=COMMIT_S)
        return int(response.added)


def _message(record: Record) -> pb.Record:
    message = pb.Record(
        boot_id=record.boot_id, sequence=record.sequence, kind=record.kind, body=record.body, sha256=record.sha256
    )
    message.time.FromDatetime(record.time)
    return message
