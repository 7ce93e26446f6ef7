"""How commands show what they found: a table for people, JSON for programs, one line with a reason for errors."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import sys
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import numpy as np
import typer
from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from splitmesh.errors import MeshError

T = TypeVar("T")

PIPE_WIDTH = 160
MAX_NAME = 48
"""Characters of a first column that is never wrapped."""

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine; a MeshError becomes one line and exit code 1."""
    try:
        return asyncio.run(work)
    except MeshError as error:
        refuse(error)


def refuse(error: MeshError) -> NoReturn:
    """Print the error and leave with exit code 1."""
    print(f"splitmesh: {error.reason.value}: {error.message}", file=sys.stderr)
    for field, problem in error.fields:
        if f"{field}: {problem}" not in error.message:
            print(f"  {field}: {problem}", file=sys.stderr)
    raise typer.Exit(1) from error


def how_to_install(extra: str) -> str:
    """What to do when a command needs packages of an extra."""
    return f"pip install '.[{extra}]' from the checkout, or splitmesh[{extra}]"


def show_json(value: object) -> None:
    """One JSON document on standard output; a number that is not finite is null."""
    print(json.dumps(plain(value), allow_nan=False, indent=2))


def show_line(value: object) -> None:
    """One JSON line on standard output, as :func:`show_json`."""
    print(json.dumps(plain(value), allow_nan=False), flush=True)


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table; numbers are aligned to the right."""
    # A pipe has no width: wide enough for a log, rather than wrapped at 80.
    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(make_table(title, columns, rows))


def make_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """As :func:`show_table` shows it."""
    table = Table(title=title or None, title_justify="left")
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
        # What a row is called by is there to be copied: it is broken only when it is a sentence of its own.
        whole = index == 0 and max((len(_cell(row[0])) for row in rows), default=0) <= MAX_NAME
        table.add_column(column, justify="right" if numeric else "left", overflow="fold", no_wrap=whole)
    for row in rows:
        table.add_row(*(escape(_cell(value)) for value in row))  # [/x] in a tensor's name is no markup
    return table


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.3g}" if abs(value) < 100 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def plain(value: object) -> object:
    """What JSON knows, all the way down; bytes in base64."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if is_dataclass(value) and not isinstance(value, type):
        # Not asdict: it copies what it finds, and errors cannot be copied.
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, MeshError):
        return {"reason": value.reason.value, "message": value.message}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, BaseModel):
        return plain(value.model_dump())
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise TypeError(f"{type(value).__name__} has no JSON form")
