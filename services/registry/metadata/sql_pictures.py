"""Statements about sets of pictures, some pictures at a time. Knows no transaction and no thread: the caller has both.

A set comes before the version that names it and goes after its end; until then, and after a process that was killed in between,
nothing names it.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, Connection, delete, exists, func, insert, select

from services.registry.metadata.tables import dataset_versions, picture_sets, pictures

AT_ONCE = 2000
"""Pictures in one transaction: other writes wait a tenth of a second for it, and a hundred thousand take some seconds."""


def begin_set(connection: Connection) -> int:
    """A new set, empty."""
    number = int(connection.execute(select(func.coalesce(func.max(picture_sets.c.id), 0))).scalar_one()) + 1
    connection.execute(insert(picture_sets).values(id=number))
    return number


def add_pictures(connection: Connection, picture_set: int, sha256s: Sequence[str]) -> None:
    """None of them is in the set already."""
    connection.execute(insert(pictures), [{"picture_set": picture_set, "sha256": one} for one in sha256s])


def drop_pictures(connection: Connection, picture_set: int) -> bool:
    """Takes some out of a set that no version names, and the set with the last ones; whether there is more to do."""
    if connection.execute(select(picture_sets.c.id).where(picture_sets.c.id == picture_set, _is_named())).first():
        return False
    some = select(pictures.c.sha256).where(pictures.c.picture_set == picture_set).limit(AT_ONCE)
    these = (pictures.c.picture_set == picture_set) & pictures.c.sha256.in_(some)
    if connection.execute(delete(pictures).where(these)).rowcount == AT_ONCE:
        return True
    connection.execute(delete(picture_sets).where(picture_sets.c.id == picture_set))
    return False


def sets_without_version(connection: Connection) -> list[int]:
    """Sets that no version names."""
    return [int(one) for one in connection.execute(select(picture_sets.c.id).where(~_is_named())).scalars()]


def _is_named() -> ColumnElement[bool]:
    return exists().where(dataset_versions.c.picture_set == picture_sets.c.id)
