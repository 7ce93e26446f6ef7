"""What hosts, heads, enterprises and other things may be called."""

from __future__ import annotations

import re

from splitmesh.errors import field_error

MAX_WORD_CHARS = 128
"""Of what is no name: who did something, a request's id, the id of a life."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def check_name(field: str, name: str) -> None:
    """FIELD_INVALID for what cannot be the name of a host, a head or an enterprise; as ``SPLITMESH_NODE`` may be."""
    if not _NAME.fullmatch(name):
        raise field_error(
            field,
            f"{name!r} is not 1 to 64 letters, digits, dots, dashes and underscores, beginning with one of the first two",
        )


def check_text(field: str, text: str, limit: int = MAX_WORD_CHARS) -> None:
    """FIELD_INVALID for what is too long, or holds a NUL, which not every database keeps."""
    if len(text) > limit:
        raise field_error(field, f"has {len(text)} characters, at most {limit} are kept")
    if "\0" in text:
        raise field_error(field, "holds a NUL character")
