"""The figures of a report as SVG text: points of bytes against answers, curves of exits, bars. Draws; measures nothing.

Colours are classes that the page's style sheet fills in, so that one figure suits light and dark. All text is escaped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape

from splitmesh.compress.report import ExitReport, Point
from splitmesh.compress.report_axes import Axis, Value, bytes_text, nice

WIDTH, HEIGHT = 900.0, 400.0
LEFT, RIGHT, TOP, BOTTOM = 70.0, 24.0, 14.0, 46.0
LETTER = 6.3
"""Width of a letter of a label, pixels; a little more than most fonts need."""
LINE = 13.0

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")

FAMILIES = {
    "rate": "this version",
    "mesh": "this version with exits",
    "plain": "plain cut",
    "jpeg": "JPEG",
    "webp": "WebP",
    "png": "PNG",
    "jpeg-full": "JPEG, full size",
    "webp-full": "WebP, full size",
    "png-full": "PNG, full size",
}
"""By style-sheet class; points of one family are joined by a line where that says something."""
_JOINED = frozenset({"rate", "mesh", "jpeg", "webp", "jpeg-full", "webp-full"})


def text(value: object) -> str:
    """Safe inside an element and inside a quoted attribute; characters that XML forbids become a question mark."""
    return escape(_CONTROL.sub("?", str(value)), quote=True)


def family(point: Point) -> str:
    """Which style a point has."""
    if point.kind == "mesh":
        return "mesh"
    if point.kind == "cut":
        return "plain" if point.name in ("float32 cut, zstd", "int8 cut, zstd") else "rate"
    codec = point.name.split(" ")[0].rstrip(",").lower()
    codec = codec if codec in ("jpeg", "webp", "png") else "png"
    return f"{codec}-full" if "full size" in point.name else codec


def short(point: Point) -> str:
    """A point's label where its colour says the family already."""
    found = re.search(r"rate \d+|q\d+|[\d.]+%", point.name)
    if found is not None:
        return found.group()
    return point.name.split(",")[0] if point.kind != "upload" else ""


def points_figure(points: Sequence[Point], value: Callable[[Point], Value | None], axis: Axis) -> str:
    """Bytes of one sample (logarithmic) against ``value``, with intervals, families in colour, every point labelled."""
    shown = [(point, found) for point in points if (found := value(point)) is not None and point.wire_bytes > 0]
    if not shown:
        return ""
    low = math.log10(min(point.wire_bytes for point, _ in shown)) - 0.12
    high = math.log10(max(point.wire_bytes for point, _ in shown)) + 0.16
    if high - low < 0.6:
        low, high = low - 0.3, high + 0.3

    def across(size: float) -> float:
        return LEFT + (math.log10(size) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def down(share: float) -> float:
        return HEIGHT - BOTTOM - min(1.0, max(0.0, axis.place(share))) * (HEIGHT - TOP - BOTTOM - 10)

    parts = [_grid(axis, down), *_byte_axis(low, high, across)]
    places: dict[str, list[tuple[float, float]]] = {}
    labels = _Labels()
    for point, found in shown:
        x, y = across(point.wire_bytes), down(found.middle)
        places.setdefault(family(point), []).append((x, y))
        labels.block(x, y)
    for name, line in places.items():
        if name in _JOINED and len(line) > 1:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in sorted(line))
            parts.append(f'<polyline class="line {name}" points="{path}"/>')
    for point, found in shown:
        x, y, name = across(point.wire_bytes), down(found.middle), family(point)
        if found.high > found.low:
            top, bottom = down(found.high), down(found.low)
            parts.append(
                f'<path class="bar {name}" d="M{x:.1f} {top:.1f}V{bottom:.1f}'
                f'M{x - 3:.1f} {top:.1f}h6M{x - 3:.1f} {bottom:.1f}h6"/>'
            )
        parts.append(_marker(x, y, name, f"{point.name}: {point.wire_bytes:,.0f} bytes"))
    for point, found in sorted(shown, key=lambda entry: entry[0].kind == "upload"):
        if label := short(point):
            parts.append(labels.place(label, across(point.wire_bytes), down(found.middle), family(point)))
    used = [name for name in FAMILIES if name in places]
    return _svg(WIDTH, HEIGHT, axis.label, parts) + legend(used)


def legend(used: Sequence[str]) -> str:
    """What the colours mean, as HTML beside a figure."""
    entries = "".join(
        f'<span class="key"><svg viewBox="0 0 14 14" width="14" height="14" aria-hidden="true">{_marker(7, 7, name, "")}'
        f"</svg>{text(FAMILIES[name])}</span>"
        for name in used
    )
    return f'<p class="legend">{entries}</p>'


def exit_figure(report: ExitReport) -> str:
    """Coverage against disagreement of one exit, both with intervals."""
    width, height, left, bottom = 420.0, 240.0, 56.0, 40.0
    found = sorted(report.points, key=lambda point: point.coverage.share)
    if not found:
        return ""
    worst = max([point.disagreement.high for point in found] + [point.tolerated for point in found]) * 1.08 or 1.0

    def across(share: float) -> float:
        return left + share * (width - left - 16)

    def down(share: float) -> float:
        return height - bottom - share / worst * (height - bottom - 12)

    step = nice(worst / 4)
    parts = []
    for turn in range(int(worst / step) + 1):
        y = down(turn * step)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{width - 16}"/>')
        parts.append(
            f'<text class="tick" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{100 * turn * step:.3g} %</text>'
        )
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(
            f'<text class="tick" x="{across(share):.1f}" y="{height - bottom + 16}" text-anchor="middle">'
            f"{100 * share:.0f} %</text>"
        )
    line = " ".join(f"{across(point.coverage.share):.1f},{down(point.disagreement.share):.1f}" for point in found)
    parts.append(f'<polyline class="line mesh" points="{line}"/>')
    for point in found:
        x, y = across(point.coverage.share), down(point.disagreement.share)
        parts.append(
            f'<path class="bar mesh" d="M{x:.1f} {down(point.disagreement.low):.1f}V{down(point.disagreement.high):.1f}'
            f'M{across(point.coverage.low):.1f} {y:.1f}H{across(point.coverage.high):.1f}"/>'
        )
        parts.append(_marker(x, y, "mesh", f"tolerated {100 * point.tolerated:g} %"))
    parts.append(
        f'<text class="name" x="{(left + width) / 2:.0f}" y="{height - 6}" text-anchor="middle">answered at the edge</text>'
    )
    return _svg(width, height, f"Disagreement against coverage of the exit {report.name}", parts)


def bars(values: Mapping[str, float], unit: str, number: Callable[[float], str]) -> str:
    """A table whose last column is a bar, for amounts that are to be compared by eye."""
    longest = max([*values.values(), 0.0]) or 1.0
    rows = "".join(
        f'<tr><td>{text(name)}</td><td class="n">{number(value)}</td><td class="w"><svg class="amount" viewBox="0 0 100 8" '
        f'preserveAspectRatio="none" aria-hidden="true"><rect width="{max(0.4, 100 * value / longest):.2f}" height="8"/></svg>'
        "</td></tr>"
        for name, value in values.items()
    )
    head = f'<tr><th></th><th class="n">{text(unit)}</th><th class="w"></th></tr>'
    return f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>"


class _Labels:
    """Puts each label at the first free place around its point."""

    def __init__(self) -> None:
        self._taken: list[tuple[float, float, float, float]] = []

    def block(self, x: float, y: float) -> None:
        self._taken.append((x - 6, y - 6, x + 6, y + 6))

    def place(self, label: str, x: float, y: float, name: str) -> str:
        width = LETTER * len(label)
        tried = []
        for ring in range(6):
            reach = 9 + ring * 12
            left, up = -reach - width, reach
            spots = [(reach, 0), (reach * 0.7, -up), (reach * 0.7, up), (left, 0), (left, -up), (left, up)]
            spots += [(-width / 2, -up - 5), (-width / 2, up + 5)]
            for across, down in spots:
                box = (x + across, y + down - LINE / 2, x + across + width, y + down + LINE / 2)
                tried.append((self._overlap(box), ring, box))
            if min(tried)[0] == 0:
                break
        _, ring, box = min(tried, key=lambda entry: (entry[0], entry[1]))
        self._taken.append(box)
        lead = ""
        if ring:
            near = min(max(x, box[0]), box[2])
            edge = box[3] if y > box[3] else box[1] if y < box[1] else (box[1] + box[3]) / 2
            lead = f'<path class="lead" d="M{x:.1f} {y:.1f}L{near:.1f} {edge:.1f}"/>'
        return f'{lead}<text class="label {name}" x="{box[0]:.1f}" y="{box[3] - 3:.1f}">{text(label)}</text>'

    def _overlap(self, box: tuple[float, float, float, float]) -> float:
        outside = box[0] < LEFT or box[2] > WIDTH - 2 or box[1] < 0 or box[3] > HEIGHT - BOTTOM
        return (1e6 if outside else 0.0) + sum(
            max(0.0, min(box[2], other[2]) - max(box[0], other[0]))
            * max(0.0, min(box[3], other[3]) - max(box[1], other[1]))
            for other in self._taken
        )


def _marker(x: float, y: float, name: str, title: str) -> str:
    about = f"<title>{text(title)}</title>" if title else ""
    if name in ("rate", "mesh"):
        return f'<circle class="dot {name}" cx="{x:.1f}" cy="{y:.1f}" r="5">{about}</circle>'
    if name == "plain":
        return f'<path class="dot {name}" d="M{x:.1f} {y - 5.5:.1f}l5.5 5.5l-5.5 5.5l-5.5 -5.5z">{about}</path>'
    if name.startswith("png"):
        return f'<path class="dot {name}" d="M{x:.1f} {y - 5:.1f}l5 9h-10z">{about}</path>'
    return f'<rect class="dot {name}" x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8">{about}</rect>'


def _grid(axis: Axis, down: Callable[[float], float]) -> str:
    parts: list[str] = []
    last = math.inf
    for value, label in sorted(axis.ticks, key=lambda tick: axis.place(tick[0])):
        y = down(value)
        if last - y < 22 and value not in (1.0,):
            continue
        if value == 1.0 and last - y < 22 and parts:
            parts.pop()
        parts.append(
            f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
            f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{text(label)}</text>'
        )
        last = y
    return "".join(parts)


def _byte_axis(low: float, high: float, across: Callable[[float], float]) -> list[str]:
    parts = []
    fine = high - low < 2.2
    for power in range(math.floor(low), math.ceil(high) + 1):
        for factor in (1, 2, 5) if fine else (1,):
            size = factor * 10.0**power
            if low <= math.log10(size) <= high:
                x = across(size)
                parts.append(f'<path class="grid" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
                parts.append(
                    f'<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">'
                    f"{bytes_text(size)}</text>"
                )
    parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    parts.append(
        f'<text class="name" x="{(LEFT + WIDTH) / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">'
        "bytes of one sample on the wire</text>"
    )
    return parts


def _svg(width: float, height: float, label: str, parts: Sequence[str]) -> str:
    return (
        f'<svg class="figure" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{text(label)}" '
        f'style="max-width:{width:g}px">{"".join(parts)}</svg>'
    )
