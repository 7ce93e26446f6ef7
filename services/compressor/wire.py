"""Messages of the compression API to values and back. Knows no registry."""

from __future__ import annotations

import base64
import binascii

from services.compressor.store import State, Status
from splitmesh.api.compression.v1 import compression_pb2
from splitmesh.compress.recipe import step_text
from splitmesh.errors import field_error
from splitmesh.kernel.errors import to_status

STATES = {
    State.QUEUED: compression_pb2.COMPRESSION_STATE_QUEUED,
    State.RUNNING: compression_pb2.COMPRESSION_STATE_RUNNING,
    State.SUCCEEDED: compression_pb2.COMPRESSION_STATE_SUCCEEDED,
    State.FAILED: compression_pb2.COMPRESSION_STATE_FAILED,
    State.CANCELLED: compression_pb2.COMPRESSION_STATE_CANCELLED,
    State.REJECTED: compression_pb2.COMPRESSION_STATE_REJECTED,
}

DEFAULT_PAGE, MAX_PAGE = 100, 1000
_TOKEN = "compressions:"


def status_to(status: Status) -> compression_pb2.Compression:
    """A compression as a message."""
    request = status.request
    message = compression_pb2.Compression(
        compression_id=request.compression_id,
        state=STATES[status.state],
        step=status.step,
        progress=status.progress,
        result_version=status.result_version,
        error=to_status(status.error) if status.error is not None else None,
        model=request.model,
        version=request.version,
        recipe=[step_text(step) for step in request.recipe.steps],
        steps_done=status.steps_done,
    )
    message.create_time.FromDatetime(request.create_time)
    return message


def page_size(asked: int) -> int:
    """0 means the default; more than the maximum means the maximum."""
    return min(asked, MAX_PAGE) or DEFAULT_PAGE


def page_to(found: list[Status], size: int) -> compression_pb2.ListCompressionsResponse:
    """A page out of a list that may hold one more than it."""
    page = found[:size]
    token = base64.urlsafe_b64encode(f"{_TOKEN}{page[-1].request.number}".encode()).decode() if found[size:] else ""
    return compression_pb2.ListCompressionsResponse(
        compressions=[status_to(status) for status in page], next_page_token=token
    )


def place_from(token: str) -> int | None:
    """Where the page before ended; None for the first page. FIELD_INVALID for a token that we did not make."""
    if not token:
        return None
    try:
        text = base64.b64decode(token, altchars=b"-_", validate=True).decode("ascii")
    except (binascii.Error, ValueError) as error:
        raise field_error("page_token", "was not made by this service") from error
    number = text.removeprefix(_TOKEN)
    if number == text or not number.isdigit():
        raise field_error("page_token", "belongs to another list")
    return int(number)
