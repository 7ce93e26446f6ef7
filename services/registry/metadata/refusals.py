"""What every metadata store refuses, in the same words, and the bounds it keeps. Knows no store."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from services.registry.metadata.records import ProfileRecord
from splitmesh.errors import MeshError, Reason

MAX_PROFILES = 100
"""Profiles kept of one model, each with a key of its own."""
MAX_SIGNATURES = 16
"""Signatures of one version, each by a key of its own."""
MAX_HOLDERS = 256
"""Holders of one version at once."""


def model_not_found(model: str) -> MeshError:
    """No version of this model was ever made."""
    return MeshError(Reason.MODEL_NOT_FOUND, f"there is no model {model!r}", metadata={"model": model})


def dataset_not_found(dataset: str) -> MeshError:
    """No version of this dataset was ever made."""
    return MeshError(Reason.DATASET_NOT_FOUND, f"there is no dataset {dataset!r}", metadata={"dataset": dataset})


def version_not_found(what: str, name: str, version: int, *, deleted: bool = False) -> MeshError:
    """The model or dataset (``what``) has no such version, or no longer."""
    return MeshError(
        Reason.VERSION_NOT_FOUND,
        f"version {version} of {what} {name!r} was deleted" if deleted else f"{what} {name!r} has no version {version}",
        metadata={what: name, "version": str(version), **({"deleted": "true"} if deleted else {})},
    )


def version_in_use(what: str, name: str, version: int, users: Sequence[str]) -> MeshError:
    """Somebody needs it; ``users`` as ``alias production``, ``holder deployment/4``, ``model solder:3``."""
    return MeshError(
        Reason.VERSION_IN_USE,
        f"version {version} of {what} {name!r} is in use by {', '.join(users[:10])}"
        + (" and more" if users[10:] else ""),
        metadata={what: name, "version": str(version), "users": ",".join(users[:10])},
    )


def alias_not_found(model: str, alias: str) -> MeshError:
    """The model has no such alias."""
    return MeshError(
        Reason.ALIAS_NOT_FOUND, f"model {model!r} has no alias {alias!r}", metadata={"model": model, "alias": alias}
    )


def alias_moved(model: str, alias: str, expected: int, found: int) -> MeshError:
    """Somebody else was faster."""
    return MeshError(
        Reason.ALIAS_MOVED,
        f"{model}@{alias} points at {found or 'nothing'}, not at {expected or 'nothing'}: it was moved meanwhile",
        metadata={"model": model, "alias": alias, "version": str(found)},
    )


def keyring_stale(version: int, newest: int) -> MeshError:
    """The keyring does not follow the newest one."""
    return MeshError(
        Reason.KEYRING_STALE,
        f"keyring {version} does not follow {newest}, the newest: make it again from that",
        metadata={"version": str(version), "newest": str(newest)},
    )


def too_many_profiles() -> MeshError:
    """No room for a profile with a new key."""
    return MeshError(
        Reason.STORAGE_FULL,
        f"this model has {MAX_PROFILES} profiles already; one measured the same way as an earlier one replaces it",
        metadata={"limit": str(MAX_PROFILES)},
    )


def too_many_signatures() -> MeshError:
    """No room for a signature of another key."""
    return MeshError(
        Reason.STORAGE_FULL,
        f"this version has {MAX_SIGNATURES} signatures already; one of an earlier key replaces that",
        metadata={"limit": str(MAX_SIGNATURES)},
    )


def too_many_holders() -> MeshError:
    """No room for another holder."""
    return MeshError(
        Reason.STORAGE_FULL,
        f"{MAX_HOLDERS} holders hold this version already; release some",
        metadata={"limit": str(MAX_HOLDERS)},
    )


def up_to(records: Iterable[ProfileRecord], max_bytes: int | None) -> list[ProfileRecord]:
    """The first record and those after it while all together have at most ``max_bytes``; the rest is not looked at."""
    found: list[ProfileRecord] = []
    size = 0
    for record in records:
        size += len(record.content.encode())
        if found and max_bytes is not None and size > max_bytes:
            break
        found.append(record)
    return found
