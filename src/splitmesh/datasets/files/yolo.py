"""YOLO as Ultralytics lays it out (docs.ultralytics.com/datasets/detect): pictures, a file of boxes for each, ``data.yaml``.

Reading; knows no pixel. Without ``data.yaml`` the names are the lines of ``classes.txt`` (Label Studio, LabelImg) and pictures
lie in ``images``. Nothing of the YAML is executed or downloaded, and no path in it leads out of the folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from splitmesh.datasets.files.found import IMAGES, LABELS, Found, Listing, Mark, Numbers
from splitmesh.datasets.files.inside import checked_folder, is_picture, kind, text, walk
from splitmesh.datasets.files.yolo_config import NAMES, Config, config_of
from splitmesh.datasets.problems import Problems

MAX_LABEL_BYTES = 4 << 20
"""Of one picture's boxes."""
MAX_BOXES = 10_000
"""Of one picture."""


def read_yolo(source: Path, problems: Problems) -> Listing:
    """Every picture with its boxes, as shares of its width and height; without a file of boxes, or an empty one: nothing on it.

    ``source``: the folder or its ``data.yaml``. Polygons become the box around them. Files of boxes whose picture is not there
    are listed without a file.

    Raises MeshError FIELD_INVALID when there is neither ``data.yaml`` nor ``classes.txt``, or one that cannot be read.
    """
    folder = source if source.is_dir() else source.parent
    config = config_of(checked_folder(folder), source if source.is_file() else None, problems)
    listing = Listing(classes=config.names, boxes=True)
    seen: set[Path] = set()
    for split, picture in _pictures(folder, config, problems):
        if picture in seen:
            problems.add(_name(folder, picture), "is listed twice")
            continue
        seen.add(picture)
        marks = _marks(folder, picture, config.names, problems)
        listing.add(Found(_name(folder, picture), picture, marks, relative=True, split=split))
    for found in _without_picture(folder, config, seen, problems):
        listing.add(found)
    return listing


def _name(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()


def _pictures(folder: Path, config: Config, problems: Problems) -> list[tuple[str, Path]]:
    found: list[tuple[str, Path]] = []
    for split, root in config.folders:
        found += [(split, path) for path, _ in walk(root, problems, folder) if is_picture(path)]
    for split, file in config.lists:
        for number, line in enumerate(text(file).splitlines(), 1):
            if not (name := line.strip()):
                continue
            path = _listed(folder, file, name, f"{_name(folder, file)}:{number}", problems)
            if path is not None:
                found.append((split, path))
    return found


def _listed(folder: Path, file: Path, name: str, where: str, problems: Problems) -> Path | None:
    plain = PurePosixPath(name)
    if plain.is_absolute() or ".." in plain.parts or "\\" in name or "\0" in name:
        problems.add(where, f"{name!r} leads out of the folder")
        return None
    for root in dict.fromkeys((file.parent, folder)):
        found = kind(root, plain)
        if found == "link":
            problems.add(where, f"{name!r} is, or lies behind, a symbolic link")
            return None
        if found == "file":
            return root / plain
    problems.add(where, f"{name!r} is not there")
    return None


def _marks(folder: Path, picture: Path, names: Sequence[str], problems: Problems) -> tuple[Mark, ...]:
    file = labels_beside(folder, picture)
    found = kind(folder, PurePosixPath(_name(folder, file)))
    if found == "link":
        problems.add(_name(folder, file), "is, or lies behind, a symbolic link")
    return read_boxes(folder, file, names, problems) if found == "file" else ()


def labels_beside(folder: Path, picture: Path) -> Path:
    """Where a picture's boxes are: the last ``images`` of its path becomes ``labels``, and the ending ``.txt``."""
    parts = list(picture.relative_to(folder).parts)
    if IMAGES in parts[:-1]:
        parts[len(parts) - 2 - parts[-2::-1].index(IMAGES)] = LABELS
    return folder.joinpath(*parts).with_suffix(".txt")


def read_boxes(folder: Path, file: Path, names: Sequence[str], problems: Problems) -> tuple[Mark, ...]:
    """Of one file; what is wrong with a line goes to ``problems``."""
    name = _name(folder, file)
    lines = text(file, MAX_LABEL_BYTES).splitlines()
    if len(lines) > MAX_BOXES:
        problems.add(name, f"has {len(lines)} lines; at most {MAX_BOXES} are read")
        return ()
    marks: dict[Mark, None] = {}
    for number, line in enumerate(lines, 1):
        where = f"{name}:{number}"
        try:
            if line.strip():
                marks[_mark(line.split(), names, where)] = None
        except ValueError as error:
            problems.add(where, str(error))
    return tuple(marks)


def _mark(cells: list[str], names: Sequence[str], where: str) -> Mark:
    if not cells[0].isascii() or not cells[0].isdigit():
        raise ValueError(f"the class {cells[0][:20]!r} is no number")
    number = int(cells[0][:9])
    if number >= len(names):
        raise ValueError(f"the class {cells[0][:20]} is none of 0 to {len(names) - 1}")
    try:
        values = [float(cell) for cell in cells[1:]]
    except ValueError as error:
        raise ValueError(f"{' '.join(cells)[:60]!r} is no line of numbers") from error
    if len(values) == 4:
        x, y, width, height = values
        return Mark(names[number], (x - width / 2, y - height / 2, width, height), where)
    if len(values) < 6 or len(values) % 2:
        raise ValueError(f"has {len(values)} numbers after the class: 4 are a box, an even number from 6 on a polygon")
    return Mark(names[number], _around(values), where)


def _around(values: list[float]) -> Numbers:
    x, y = values[::2], values[1::2]
    return min(x), min(y), max(x) - min(x), max(y) - min(y)


def _without_picture(folder: Path, config: Config, seen: set[Path], problems: Problems) -> list[Found]:
    """Files of boxes that no picture lies beside, as in exports without pictures: it is known by the file's name."""
    roots = {labels_beside(folder, place / "x").parent for _, place in config.folders}
    if not config.folders and not config.lists:
        roots = {folder / LABELS}
    beside = {labels_beside(folder, picture) for picture in seen}
    found = []
    for root in sorted(roots):
        if kind(folder, PurePosixPath(_name(folder, root))) != "folder":
            continue
        for file, _ in walk(root, problems, folder):
            if file.suffix.lower() == ".txt" and file not in beside and file.name not in NAMES:
                marks = read_boxes(folder, file, config.names, problems)
                found.append(Found(_name(folder, file), None, marks, relative=True))
    return found
