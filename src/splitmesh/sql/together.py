"""Several writes in one transaction, each with an end of its own. Knows savepoints; begins and commits nothing.

A commit costs a disk's sync however little is in it, so writes that wait at the same moment share one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from splitmesh.sql.sql_errors import is_to_repeat, to_mesh_error

Work = Callable[[Connection], Any]
"""Statements of one caller. May run more than once: what it changes outside the database must bear that."""

_SAVEPOINT = "each"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one of several writes ended, if the transaction is committed."""

    value: Any = None
    error: BaseException | None = None


def run_each(connection: Connection, works: Sequence[Work]) -> list[Outcome]:
    """Runs them in order; what one that raises has changed is taken back, and only that.

    Raises:
        DBAPIError: the transaction as a whole is gone, or has to be repeated.
    """
    return [_run(connection, work) for work in works]


def _run(connection: Connection, work: Work) -> Outcome:
    connection.exec_driver_sql(f"SAVEPOINT {_SAVEPOINT}")
    try:
        outcome = Outcome(work(connection))
    except DBAPIError as error:
        if is_to_repeat(error):
            raise
        _take_back(connection, error)
        outcome = Outcome(error=to_mesh_error(error) or error)
    except Exception as error:
        _take_back(connection, error)
        outcome = Outcome(error=error)
    connection.exec_driver_sql(f"RELEASE SAVEPOINT {_SAVEPOINT}")
    return outcome


def _take_back(connection: Connection, cause: Exception) -> None:
    try:
        connection.exec_driver_sql(f"ROLLBACK TO SAVEPOINT {_SAVEPOINT}")
    except SQLAlchemyError:
        # The connection is lost, or SQLite has rolled back everything (a full disk): the first error says why.
        raise cause from None
