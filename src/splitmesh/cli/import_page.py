"""The report of an import as tables in a terminal, as JSON, and as a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING

from splitmesh.cli.output import plain, show_table
from splitmesh.compress.report_style import STYLE
from splitmesh.errors import field_error
from splitmesh.export.files import write_file

if TYPE_CHECKING:
    from splitmesh.convert.report import ImportReport
    from splitmesh.model.segments import TensorInfo
    from splitmesh.model.unsupported import Unsupported

COLUMNS = ("kind", "name", "times", "where", "what is wrong", "what to do")
SHOWN_PLACES = 3
_OWN_STYLE = "tbody tr:last-child th{border-bottom:0}pre{white-space:pre-wrap;margin:0}"
PAGES = frozenset({".html", ".htm"})


def require_report(path: Path | None) -> None:
    """FIELD_INVALID before the work, rather than after it, when the report has no form or no folder."""
    if path is not None and path.suffix.lower() not in (*PAGES, ".json"):
        raise field_error("report", f"{path} is neither .json nor .html")
    if path is not None and not path.absolute().parent.is_dir():
        raise field_error("report", f"{path.parent} is no folder")


def write_report(path: Path, report: ImportReport) -> None:
    """At ``path``, by its suffix; STORAGE_FULL."""
    page = path.suffix.lower() in PAGES
    content = render(report) if page else json.dumps(as_json(report), indent=2) + "\n"
    write_file(path.absolute(), content.encode())


def as_json(report: ImportReport) -> dict[str, object]:
    """As it is, with the verdict in one word."""
    found = plain(report)
    assert isinstance(found, dict)
    return {"accepted": report.accepted, **found}


def show_unsupported(report: ImportReport) -> None:
    """Everything that is in the way, one line each; nothing when there is nothing."""
    if report.unsupported:
        show_table("", COLUMNS, [_row(one) for one in report.unsupported])


def show_report(report: ImportReport) -> None:
    """What a dry run found."""
    print(f"{report.source}: {report.kind}, {'can' if report.accepted else 'cannot'} be imported")
    facts = _facts(report)
    if facts:
        show_table("", ["", "found"], facts)
    for note in report.notes:
        print(f"note: {note}")
    show_unsupported(report)


def render(report: ImportReport) -> str:
    """One page that needs nothing else."""
    verdict, _, lines = ("It can be imported." if report.refusal is None else report.refusal.message).partition("\n")
    facts = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in _facts(report))
    notes = "".join(f"<p class=note>{escape(note)}</p>" for note in report.notes)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>Import of {escape(Path(report.source).name)}</title><style>{STYLE}{_OWN_STYLE}</style></head><body><main>
<p class="kicker">Import report</p><h1>{escape(report.source)}</h1>
<p class="recipe">{escape(report.kind)}</p>
<p class="verdict {"good" if report.accepted else "bad"}">{escape(verdict.removesuffix(":"))}</p>
{_section("What to do", f"<pre>{escape(dedent(lines))}</pre>") if lines else ""}
{_section("In the way", _table(report.unsupported)) if report.unsupported else ""}
{_section("What it is", f"<table><tbody>{facts}</tbody></table>{notes}") if facts or notes else ""}
{_section("Operators", _operators(report)) if report.operators else ""}
</main></body></html>
"""


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def _table(parts: Sequence[Unsupported]) -> str:
    head = "".join(f"<th>{escape(one)}</th>" for one in COLUMNS)
    rows = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in _row(one)) + "</tr>" for one in parts)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _operators(report: ImportReport) -> str:
    return "<p>" + " ".join(f"<code>{escape(name)} {count}</code>" for name, count in report.operators.items()) + "</p>"


def _row(one: Unsupported) -> list[object]:
    more = f" and {one.count - SHOWN_PLACES} more" if one.count > SHOWN_PLACES and one.where else ""
    return [one.kind, one.name, one.count, ", ".join(one.where[:SHOWN_PLACES]) + more, one.problem, one.hint]


def _facts(report: ImportReport) -> list[tuple[str, str]]:
    found = report.comparison
    facts = [
        ("ONNX file", f"{report.size_bytes:,} bytes" if report.size_bytes else ""),
        ("opset", str(report.opset or "")),
        ("operators", str(sum(report.operators.values()) or "")),
        ("inputs", _tensors(report.inputs)),
        ("outputs", _tensors(report.outputs)),
    ]
    if found is not None:
        text = f"{found.largest_difference:.1e} of an output on {found.samples} random inputs"
        facts.append(("differs by at most", f"{text} (allowed: {found.tolerance:g})"))
    return [(name, text) for name, text in facts if text]


def _tensors(infos: Sequence[TensorInfo]) -> str:
    return ", ".join(f"{one.name} {one.dtype}{list(one.shape)}" for one in infos)
