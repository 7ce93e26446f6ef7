"""Text in the cells of a table that may be opened with a spreadsheet: what looks like a formula there begins with an apostrophe.

Knows single cells, no tables and no files.
"""

from __future__ import annotations

import re

_FORMULA = re.compile(r"'*[=+\-@\t\r]")
"""Also one that has its apostrophe already, so that taking one away gives back what there was."""


def quoted(text: str) -> str:
    """As it is written into a cell."""
    return f"'{text}" if _FORMULA.match(text) else text


def unquoted(cell: str) -> str:
    """What :func:`quoted` was given; other text as it is."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
