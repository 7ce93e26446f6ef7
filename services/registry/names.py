"""What things may be called, and other bounds on the fields of a request."""

from __future__ import annotations

import re
from collections import Counter

from services.registry.store import Draft
from splitmesh.errors import field_error

MAX_DESCRIPTION_CHARS = 4000
MAX_WORD_CHARS = 128
"""Of ``created_by`` and ``request_id``."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_ARTIFACT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def check_model_name(model: str) -> None:
    """FIELD_INVALID for what cannot be a model's name."""
    if not _NAME.fullmatch(model):
        raise field_error(
            "model", f"{model!r} is not 1 to 64 of a-z, 0-9, dot, dash and underscore, beginning with a-z or 0-9"
        )


def check_alias(alias: str) -> None:
    """FIELD_INVALID for what cannot be an alias; all digits would read like a version."""
    if not _NAME.fullmatch(alias) or alias.isdigit():
        raise field_error(
            "alias", f"{alias!r} is not 1 to 64 of a-z, 0-9, dot, dash and underscore, or it is only digits"
        )


def check_draft(draft: Draft, max_artifacts: int) -> None:
    """FIELD_INVALID for the first field that is wrong."""
    check_model_name(draft.model)
    for field, text, limit in (
        ("created_by", draft.created_by, MAX_WORD_CHARS),
        ("request_id", draft.request_id, MAX_WORD_CHARS),
        ("description", draft.description, MAX_DESCRIPTION_CHARS),
    ):
        if len(text) > limit:
            raise field_error(field, f"has {len(text)} characters, at most {limit} are kept")
    if len(draft.artifacts) > max_artifacts:
        raise field_error("artifacts", f"{len(draft.artifacts)} artefacts, at most {max_artifacts} make a version")
    for index, artifact in enumerate(draft.artifacts):
        if not _ARTIFACT.fullmatch(artifact.name):
            raise field_error(f"artifacts[{index}].name", f"{artifact.name!r} is not a plain file name")
        if not _SHA256.fullmatch(artifact.sha256):
            raise field_error(f"artifacts[{index}].sha256", "must be 64 lower-case hexadecimal digits")
    for name, times in Counter(artifact.name for artifact in draft.artifacts).items():
        if times > 1:
            raise field_error("artifacts", f"{name!r} is listed {times} times")
