"""Messages of the compression API to values and back. Knows no registry."""

from __future__ import annotations

from services.compressor.compress import Recipe
from services.compressor.report import Report
from services.compressor.runs import State, Status
from splitmesh.api.compression.v1 import compression_pb2
from splitmesh.kernel.errors import to_status

STATES = {
    State.QUEUED: compression_pb2.COMPRESSION_STATE_QUEUED,
    State.RUNNING: compression_pb2.COMPRESSION_STATE_RUNNING,
    State.SUCCEEDED: compression_pb2.COMPRESSION_STATE_SUCCEEDED,
    State.FAILED: compression_pb2.COMPRESSION_STATE_FAILED,
}


def recipe_from(message: compression_pb2.Recipe) -> Recipe:
    """What to do."""
    return Recipe(quantise_cut=message.quantise_cut, attach_exit=message.attach_exit)


def status_to(status: Status) -> compression_pb2.Compression:
    """A compression as a message."""
    return compression_pb2.Compression(
        compression_id=status.compression_id,
        state=STATES[status.state],
        step=status.step,
        progress=status.progress,
        result_version=status.result_version,
        error=to_status(status.error) if status.error is not None else None,
    )


def report_to(version: int, report: Report) -> compression_pb2.GetReportResponse:
    """A report as a message."""
    return compression_pb2.GetReportResponse(version=version, **report.model_dump(exclude={"schema_version"}))
