"""Page sizes and page tokens. A token says where the last page ended; clients must not look inside."""

from __future__ import annotations

import base64
import binascii

from splitmesh.errors import field_error

DEFAULT_PAGE = 100
MAX_PAGE = 1000


def page_size(asked: int) -> int:
    """0 means the default; more than the maximum means the maximum."""
    return min(asked, MAX_PAGE) or DEFAULT_PAGE


def to_token(kind: str, position: str) -> str:
    """A token for the page after ``position``."""
    return base64.urlsafe_b64encode(f"{kind}:{position}".encode()).decode()


def from_token(kind: str, token: str) -> str:
    """The position in a token of this kind, empty for an empty token; FIELD_INVALID for anything we did not make."""
    if not token:
        return ""
    try:
        text = base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise field_error("page_token", "was not made by this registry") from error
    found, colon, position = text.rpartition(":")
    if not colon or found != kind:
        raise field_error("page_token", "belongs to another list")
    return position
