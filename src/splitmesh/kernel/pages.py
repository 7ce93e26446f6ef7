"""Page sizes and page tokens. A token says where the last page ended; clients must not look inside."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import TypeVar

from splitmesh.errors import field_error

Item = TypeVar("Item")

DEFAULT_PAGE = 100
MAX_PAGE = 1000
_MAX_DIGITS = 18


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
        raise field_error("page_token", "was not made by this service") from error
    found, colon, position = text.rpartition(":")
    if not colon or found != kind:
        raise field_error("page_token", "belongs to another list")
    return position


def number_from_token(kind: str, token: str) -> int:
    """As :func:`from_token`, for positions that are numbers; 0 for an empty token."""
    before = from_token(kind, token) or "0"
    if not (before.isascii() and before.isdigit() and len(before) <= _MAX_DIGITS):
        raise field_error("page_token", "was not made by this service")
    return int(before)


def page(kind: str, found: Sequence[Item], size: int, position: Callable[[Item], object]) -> tuple[Sequence[Item], str]:
    """Of up to ``size + 1`` items that were found: the page, and the token of the next, empty after the last."""
    return found[:size], to_token(kind, str(position(found[size - 1]))) if len(found) > size else ""
