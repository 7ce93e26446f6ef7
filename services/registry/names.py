"""What things may be called, and other bounds on the fields of a request."""

from __future__ import annotations

import math
import re
from collections import Counter

from services.registry.metadata.records import AliasChange, Draft
from splitmesh.errors import field_error
from splitmesh.model.lineage import Lineage

MAX_DESCRIPTION_CHARS = 4000
MAX_REASON_CHARS = 1000
MAX_WORD_CHARS = 128
"""Of who did something, of a request's id, a holder, a task, a code version."""
MAX_PARENTS, MAX_DATASETS, MAX_SEEDS, MAX_METRICS = 16, 64, 64, 64
"""In one lineage; together with the other bounds they keep a full page of versions below the message limit."""
MAX_METRIC_CHARS = 64
MAX_VERSION = 2**31 - 1
"""What every store can count to."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_ARTIFACT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ROLE = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")


def check_model_name(model: str, field: str = "model") -> None:
    """FIELD_INVALID for what cannot be the name of a model, nor of a dataset."""
    if not _NAME.fullmatch(model):
        raise field_error(
            field, f"{model!r} is not 1 to 64 of a-z, 0-9, dot, dash and underscore, beginning with a-z or 0-9"
        )


def check_alias(alias: str) -> None:
    """FIELD_INVALID for what cannot be an alias; all digits would read like a version."""
    if not _NAME.fullmatch(alias) or alias.isdigit():
        raise field_error(
            "alias", f"{alias!r} is not 1 to 64 of a-z, 0-9, dot, dash and underscore, or it is only digits"
        )


def check_number(field: str, version: int) -> None:
    """FIELD_INVALID for a version that no store can count to."""
    if not 0 <= version <= MAX_VERSION:
        raise field_error(field, f"{version} is no version")


def check_text(field: str, text: str, limit: int = MAX_WORD_CHARS) -> None:
    """FIELD_INVALID for what is too long, or holds a NUL, which not every store keeps."""
    if len(text) > limit:
        raise field_error(field, f"has {len(text)} characters, at most {limit} are kept")
    if "\0" in text:
        raise field_error(field, "holds a NUL character")


def check_holder(holder: str) -> None:
    """FIELD_INVALID for what names no holder."""
    check_text("holder", holder)
    if not holder:
        raise field_error("holder", "is empty")


def check_change(change: AliasChange, moved_by: str) -> None:
    """FIELD_INVALID for the first field that is wrong."""
    check_model_name(change.model)
    check_alias(change.alias)
    check_number("version", change.version)
    check_number("expected_version", change.expected or 0)
    check_text("moved_by", moved_by)
    check_text("reason", change.reason, MAX_REASON_CHARS)


def check_draft(draft: Draft, max_artifacts: int) -> None:
    """FIELD_INVALID for the first field that is wrong."""
    check_model_name(draft.model)
    check_number("parent", draft.parent)
    check_text("created_by", draft.created_by)
    check_text("request_id", draft.request_id)
    check_text("description", draft.description, MAX_DESCRIPTION_CHARS)
    check_lineage(draft.lineage)
    if len(draft.artifacts) > max_artifacts:
        raise field_error("artifacts", f"{len(draft.artifacts)} artefacts, at most {max_artifacts} make a version")
    for index, artifact in enumerate(draft.artifacts):
        if not _ARTIFACT.fullmatch(artifact.name):
            raise field_error(f"artifacts[{index}].name", f"{artifact.name!r} is not a plain file name")
        if not _SHA256.fullmatch(artifact.sha256):
            raise field_error(f"artifacts[{index}].sha256", "must be 64 lower-case hexadecimal digits")
    # Whoever pulls makes files of them, and not every file system tells large letters from small ones.
    for name, times in Counter(artifact.name.lower() for artifact in draft.artifacts).items():
        if times > 1:
            raise field_error("artifacts", f"{name!r} is listed {times} times")


def check_lineage(lineage: Lineage) -> None:
    """FIELD_INVALID for the first field that is wrong; whether what it names exists is not asked here."""
    for field, found, limit in (
        ("parents", len(lineage.parents), MAX_PARENTS),
        ("datasets", len(lineage.datasets), MAX_DATASETS),
        ("seeds", len(lineage.seeds), MAX_SEEDS),
        ("metrics", len(lineage.metrics), MAX_METRICS),
    ):
        if found > limit:
            raise field_error(f"lineage.{field}", f"has {found}, at most {limit} are kept")
    check_text("lineage.task", lineage.task)
    check_text("lineage.code_version", lineage.code_version)
    if lineage.recipe_sha256 and not _SHA256.fullmatch(lineage.recipe_sha256):
        raise field_error("lineage.recipe_sha256", "must be 64 lower-case hexadecimal digits")
    for index, parent in enumerate(lineage.parents):
        check_model_name(parent.model, f"lineage.parents[{index}].model")
        _check_counted(f"lineage.parents[{index}].version", parent.version)
    for index, use in enumerate(lineage.datasets):
        where = f"lineage.datasets[{index}]"
        check_model_name(use.dataset, f"{where}.dataset")
        _check_counted(f"{where}.version", use.version)
        if not _SHA256.fullmatch(use.sha256):
            raise field_error(f"{where}.sha256", "must be 64 lower-case hexadecimal digits")
        if not _ROLE.fullmatch(use.role):
            raise field_error(f"{where}.role", f"{use.role!r} is not 1 to 32 of a-z, 0-9, dot, dash and underscore")
    for name, value in lineage.metrics.items():
        check_text("lineage.metrics", name, MAX_METRIC_CHARS)
        if not name or not math.isfinite(value):
            raise field_error("lineage.metrics", f"{name!r} is {value}, expected a name and a finite number")


def _check_counted(field: str, version: int) -> None:
    check_number(field, version)
    if not version:
        raise field_error(field, "versions count from 1")
