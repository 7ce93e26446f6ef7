"""Saving the figures that commands draw: PNG, SVG, or an HTML page with the SVG in it.

matplotlib is an extra (``plot``) and only its object interface is used: no global state, no window, no display.
"""

from __future__ import annotations

import html
import io
from pathlib import Path
from typing import TYPE_CHECKING

from splitmesh.errors import MeshError, Reason, field_error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".html")

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>{title}</title></head>
<body>
{svg}
</body>
</html>
"""


def require_plot_file(path: Path) -> None:
    """FIELD_INVALID unless ``path`` can become a figure's file; ModuleNotFoundError without matplotlib.

    To be called before a long measurement rather than after it.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise field_error("plot", f"{path.name} does not end with one of {', '.join(SUFFIXES)}")
    if not path.resolve().parent.is_dir():
        raise field_error("plot", f"there is no folder {path.parent}")
    import matplotlib  # noqa: F401


def new_figure(width: float = 9.0, height: float = 6.0) -> Figure:
    """An empty figure, sizes in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: Path, *, title: str = "splitmesh") -> None:
    """Write a figure; the ending of ``path`` says how: ``.png``, ``.svg`` or ``.html``.

    Raises MeshError FIELD_INVALID for another ending, STORAGE_FULL when the file cannot be written.
    """
    require_plot_file(path)
    content = io.BytesIO()
    suffix = path.suffix.lower()
    if suffix == ".png":
        figure.savefig(content, format="png", dpi=144)
    else:
        figure.savefig(content, format="svg", metadata={"Title": title})
    data = content.getvalue()
    if suffix == ".html":
        svg = data.decode()
        data = _PAGE.format(title=html.escape(title), svg=svg[svg.index("<svg") :]).encode()
    try:
        path.write_bytes(data)
    except OSError as error:
        raise MeshError(Reason.STORAGE_FULL, f"cannot write {path}: {error.strerror}") from error
