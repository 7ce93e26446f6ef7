"""What the event of each act says, the same from every store. Knows no store and no actor."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from services.registry.metadata.records import AliasChange, DatasetDraft, Draft


@dataclass(frozen=True, slots=True)
class Act:
    """An event without sequence, time and actor."""

    kind: str
    name: str
    subject: str
    detail: str


def version_created(draft: Draft, version: int) -> Act:
    """A version was made."""
    parent = f", from version {draft.parent}" if draft.parent else ""
    detail = f"{_count(len(draft.artifacts), 'artefact')}{parent}"
    return Act("version.created", draft.model, f"{draft.model}:{version}", detail)


def version_signed(model: str, version: int, key_id: str) -> Act:
    """A signature was added or replaced."""
    return Act("version.signed", model, f"{model}:{version}", f"by key {key_id}")


def version_held(model: str, version: int, holder: str, until: datetime | None) -> Act:
    """A holder came."""
    end = f"until {until.isoformat()}" if until else "until released"
    return Act("version.held", model, f"{model}:{version}", f"{holder}, {end}")


def version_released(model: str, version: int, holder: str) -> Act:
    """A holder went."""
    return Act("version.released", model, f"{model}:{version}", holder)


def version_deleted(model: str, version: int, reason: str) -> Act:
    """A version was taken away."""
    return Act("version.deleted", model, f"{model}:{version}", reason)


def alias_moved(change: AliasChange, previous: int) -> Act:
    """An alias was made, moved or taken away."""
    detail = f"{previous or 'nowhere'} to {change.version or 'nowhere'}" + (
        f": {change.reason}" if change.reason else ""
    )
    return Act("alias.moved", change.model, f"{change.model}@{change.alias}", detail)


def keyring_put(version: int) -> Act:
    """A keyring came into force."""
    return Act("keyring.put", "keyring", f"keyring:{version}", "")


def keyrings_removed(newest: int, removed: Sequence[bytes]) -> Act:
    """A chain of keyrings gave way to one of other roots."""
    digest = hashlib.sha256(removed[-1]).hexdigest()
    return Act(
        "keyring.removed", "keyring", f"keyring:{newest}", f"{_count(len(removed), 'keyring')}; SHA-256 {digest}"
    )


def dataset_created(draft: DatasetDraft, version: int) -> Act:
    """A version of a dataset was made."""
    parent = f", from version {draft.parent}" if draft.parent else ""
    detail = f"{_count(len(draft.contents), 'picture')}{parent}"
    return Act("dataset.created", draft.dataset, f"{draft.dataset}:{version}", detail)


def dataset_deleted(dataset: str, version: int, reason: str, users: int) -> Act:
    """A version of a dataset was taken away, which so many model versions were made with."""
    used = [f"although {_count(users, 'model version')} used it"] if users else []
    return Act("dataset.deleted", dataset, f"{dataset}:{version}", ": ".join([*used, *([reason] if reason else [])]))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
