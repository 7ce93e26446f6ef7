"""Labels read from what a labelling tool or a person wrote: COCO, YOLO, class folders, a table. Names and labels, no samples.

The forms are ``datasets.files``'s; nothing outside the given folder is opened, whatever an annotation, a table or a symbolic link
says. Which sample a name means is ``labelling.py``'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from splitmesh.datasets.files import Form as FileForm
from splitmesh.datasets.files.reading import list_source
from splitmesh.datasets.problems import Problems
from splitmesh.errors import field_error

Form = Literal["coco", "folder", "csv", "yolo"]
_FORMS: Mapping[Form, FileForm] = {"coco": "coco", "folder": "imagefolder", "csv": "csv", "yolo": "yolo"}


@dataclass(frozen=True, slots=True)
class NamedLabel:
    """One label of one picture, by the picture's name."""

    name: str
    """As it was written, below the source's folder."""
    label: str
    file: Path | None
    """The picture, where it lies beside: a plain file below the folder."""


def read_labels(source: Path, form: Form, problems: Problems) -> list[NamedLabel]:
    """All labels of ``source`` in its order; pictures without one are left out, boxes give their labels.

    Args:
        source: ``coco``: a JSON file, or a folder with one, also in ``annotations``. ``csv``: a file, or a folder with
            ``labels.csv``; its columns are ``image`` (or ``path``, ``file_name``, ``filename``, ``id``) and ``label`` (or
            ``quality``, ``class``, ``choice``). ``folder``: a folder for each class; its own tables are not read. ``yolo``: a
            folder with ``data.yaml`` or ``classes.txt``; its pictures need not be there.
        problems: gets what is wrong with single entries: names that lead out of the folder, links, unknown ids.

    Raises MeshError FIELD_INVALID when the source as a whole cannot be read or is too large.
    """
    if form not in _FORMS:
        raise field_error("form", f"{form!r} is none of {', '.join(_FORMS)}")
    found = []
    for one in list_source(source, _FORMS[form], problems):
        found += [NamedLabel(one.name, label, one.file) for label in dict.fromkeys(mark.label for mark in one.marks)]
    return found
