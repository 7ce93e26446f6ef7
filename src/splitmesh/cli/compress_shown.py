"""How a compression is shown: a bar while it runs, its points as a table, its page as a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from splitmesh.cli.compress_here import Made
from splitmesh.cli.output import show_json, show_table
from splitmesh.client.compression import CompressionInfo
from splitmesh.compress.report import Proportion, Report
from splitmesh.errors import field_error
from splitmesh.kernel.jobs import Progress


@contextmanager
def progress_bar(hidden: bool) -> Iterator[Progress]:
    """On standard error; gone when it is done."""
    columns = (
        TextColumn("{task.description}", markup=False),  # it may hold names of tensors
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    with Bar(*columns, transient=True, disable=hidden, console=Console(stderr=True)) as bar:
        task = bar.add_task("compress", total=1.0)

        def advance(step: str, share: float) -> None:
            bar.update(task, description=step, completed=share)

        yield advance


def following(progress: Progress) -> Callable[[CompressionInfo], None]:
    """Each state of a compression at the compressor as progress."""
    return lambda state: progress(state.step or state.state.value.lower(), state.progress)


def page_of(made: Made) -> str:
    """The report as HTML, with the pictures."""
    from splitmesh.compress.report_html import render

    return render(made.report, made.pictures)


def require_page(path: Path) -> None:
    """Asked before hours of work rather than behind them. MeshError FIELD_INVALID when no page can be written there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise field_error("report", f"{path.parent}: {error.strerror}") from error
    if path.is_dir():
        raise field_error("report", f"{path} is a folder, expected the name of the page")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise field_error("report", f"{path} cannot be written")


def write_page(path: Path, page: str) -> None:
    """The page as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def show_made(made: Made, page: Path | None, json: bool) -> None:
    """The outcome of a recipe: its points, what it cost, and where it lies."""
    if json:
        shown = {"version": made.version, "out": made.out, "report": made.report.model_dump(mode="json")}
        show_json(shown | {"page": page, "within_budget": not made.report.exceeded})
        return
    found = made.report
    title = f"{found.model}, {found.holdout_samples} held-out samples"
    if found.points:
        answers = any(point.output_error is not None for point in found.points)
        rows: list[list[object]] = [
            [point.name, round(point.wire_bytes), *([f"{100 * (point.output_error or 0):.3g} %"] if answers else [])]
            + ([] if answers else [_share(point.agreement), _share(point.accuracy)])
            for point in sorted(found.points, key=lambda point: point.wire_bytes)
        ]
        columns = ["way to answer", "bytes", *(["output error"] if answers else ["agreement", "accuracy"])]
        show_table(title, columns, rows)
    for line in _summary(found):
        print(line)
    if made.version:
        print(f"registered as version {made.version}")
    if made.out is not None:
        print(f"written to {made.out}")
    if page is not None:
        print(f"report: {page}")


def _summary(found: Report) -> Iterator[str]:
    if found.agreement is not None:
        yield f"agrees with the original on {_share(found.agreement)}"
    if found.accuracy is not None and found.accuracy_before is not None:
        yield f"accuracy {_share(found.accuracy)}, before {_share(found.accuracy_before)}"
    if found.output_error is not None:
        yield f"its outputs are {found.output_error:.2%} off (root mean square)"
    for step in found.steps:
        for remark in step.remarks:
            yield f"{step.step}: {remark}"


def show_state(info: CompressionInfo, json: bool) -> None:
    """Where a compression stands."""
    if json:
        show_json(info)
        return
    made = f", version {info.result_version}" if info.result_version else ""
    print(
        f"{info.compression_id} of {info.model}:{info.version} is {info.state.value}, {info.steps_done} steps done{made}"
    )


def _share(found: Proportion | None) -> str:
    return "-" if found is None else f"{found.share:.1%} ({100 * found.low:.1f}-{100 * found.high:.1f})"
