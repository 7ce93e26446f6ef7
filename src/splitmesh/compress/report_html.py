"""A report as one page for people: nothing is fetched from anywhere, readable in light and dark, and on paper.

Names come from models and files of others: everything is escaped. Draws what ``Report`` holds; measures nothing. The
pictures are those of the leakage step, so the page stays where they are.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence

from splitmesh.compress.report import CONFIDENCE, ExitReport, Point, Proportion, Report
from splitmesh.compress.report_axes import Value, bytes_text, error_axis, share_axis
from splitmesh.compress.report_plot import bars, exit_figure, points_figure, text
from splitmesh.compress.report_style import STYLE

PNG = b"\x89PNG\r\n\x1a\n"

LIMITS = {
    "max_disagreement": "disagreement with the original",
    "max_accuracy_loss": "accuracy lost",
    "max_output_error": "error of the outputs",
}


def render(report: Report, pictures: Mapping[str, bytes]) -> str:
    """The page: HTML that is well-formed XML too.

    Args:
        report: what to show.
        pictures: PNG files by caption, shown beside the leakage figures; what is not PNG is left out.
    """
    sections = [
        ("Bytes against answers", _plots(report)),
        ("All ways to answer", _points(report.points)),
        ("Exits", _exits(report)),
        ("What leaks", _leakage(report, pictures)),
        ("Time of one sample", _latencies(report)),
        ("Sizes of files", _sizes(report)),
        ("Steps", _steps(report)),
    ]
    body = "".join(f"<section><h2>{text(title)}</h2>{content}</section>" for title, content in sections if content)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{text(report.model)}: compression report</title><style>{STYLE}</style></head><body><main>"
        f"<header><p class='kicker'>compression report</p><h1>{text(report.model)}</h1>"
        f"<p class='recipe'>{' '.join(f'<code>{text(step.step)}</code>' for step in report.steps)}</p></header>"
        f"{_verdict(report)}{_headlines(report)}{body}{_footer(report)}</main></body></html>\n"
    )


def _verdict(report: Report) -> str:
    budget = {name: value for name, value in report.budget.model_dump().items() if value is not None}
    if report.exceeded:
        said = "; ".join(
            f"{LIMITS.get(entry.what, entry.what)} is {_amount(entry.what, entry.measured)}, "
            f"allowed {_amount(entry.what, entry.allowed)}"
            for entry in report.exceeded
        )
        return f'<p class="verdict bad"><b>Over the budget.</b> {text(said)}. Nothing was registered.</p>'
    if not budget:
        return '<p class="verdict none"><b>No budget was set.</b> Whether this is good enough is for you to say.</p>'
    said = ", ".join(f"{LIMITS[name]} at most {_amount(name, value)}" for name, value in budget.items())
    return f'<p class="verdict good"><b>Within the budget:</b> {text(said)}.</p>'


def _headlines(report: Report) -> str:
    cards = []
    if report.agreement is not None:
        cards.append(("agrees with the original", _percent(report.agreement.share), _interval(report.agreement)))
    if report.accuracy is not None and report.accuracy_before is not None:
        change = 100 * (report.accuracy.share - report.accuracy_before.share)
        before = f"before {_percent(report.accuracy_before.share)} ({change:+.1f} points)"
        cards.append(("accuracy", _percent(report.accuracy.share), f"{before}; n = {report.accuracy.n}"))
    if report.output_error is not None:
        cards.append(
            ("error of the outputs", f"{100 * report.output_error:.2g} %", "root mean square, of the outputs'")
        )
    best = next((point for point in report.points if point.kind == "cut"), None)
    if best is not None:
        cards.append(("crosses per sample", bytes_text(best.wire_bytes), best.name))
    if best is not None and (upload := _fair_upload(report.points, best)) is not None:
        factor = upload.wire_bytes / best.wire_bytes if best.wire_bytes else 0.0
        many = f"{factor:.1f} x as much" if factor >= 1 else f"{factor:.2f} x as much"
        cards.append(("the smallest upload as good", bytes_text(upload.wire_bytes), f"{upload.name}, {many}"))
    if {"head", "encode", "whole before"} <= report.latency_ms.keys():
        edge = report.latency_ms["head"] + report.latency_ms["encode"]
        whole = report.latency_ms["whole before"]
        cards.append(("work before the link", f"{edge:.3g} ms", f"the original whole model: {whole:.3g} ms"))
    found = "".join(
        f'<div class="card"><p class="what">{text(what)}</p><p class="value">{text(value)}</p>'
        f'<p class="more">{text(more)}</p></div>'
        for what, value, more in cards
    )
    return f'<div class="cards">{found}</div>' if found else ""


def _fair_upload(points: Sequence[Point], best: Point) -> Point | None:
    """The smallest upload that agrees no less than the version's best rate."""
    if best.agreement is None:
        return None
    fair = [
        point
        for point in points
        if point.kind == "upload" and point.agreement is not None and point.agreement.share >= best.agreement.share
    ]
    return min(fair, key=lambda point: point.wire_bytes, default=None)


def _plots(report: Report) -> str:
    found = []
    for name, title in (
        ("agreement", "Agreement with the original whole model"),
        ("accuracy", "Accuracy against the labels"),
    ):
        values = [value for point in report.points if (value := _value(getattr(point, name))) is not None]
        if values:
            axis = share_axis(title, values, report.holdout_samples)
            figure = points_figure(report.points, lambda point, name=name: _value(getattr(point, name)), axis)  # type: ignore[misc]
            found.append(f"<h3>{title}</h3>{figure}")
    errors = [_error(point) for point in report.points]
    known = [value for value in errors if value is not None]
    if known:
        title = "Error of the outputs, 0 at the top"
        found.append(f"<h3>{title}</h3>{points_figure(report.points, _error, error_axis(title, known))}")
    if not found:
        return ""
    note = (
        f"Up and to the left is better. Bars are {CONFIDENCE:.0%} intervals; the vertical scale is stretched towards 100 %."
        if not known
        else "Up and to the left is better."
    )
    return f'{"".join(found)}<p class="note">{note}</p>'


def _points(points: Sequence[Point]) -> str:
    rows = []
    kinds = {"cut": "features of every sample", "mesh": "features of hard samples", "upload": "pictures"}
    for kind, said in kinds.items():
        chosen = sorted((point for point in points if point.kind == kind), key=lambda point: point.wire_bytes)
        if chosen:
            rows.append(f'<tr class="group"><th colspan="7">{said}</th></tr>')
            rows += [_point(point) for point in chosen]
    if not rows:
        return ""
    error = any(point.output_error is not None for point in points)
    head = '<th>way</th><th class="n">bytes</th>' + (
        '<th class="n">output error</th>'
        if error
        else '<th class="n" colspan="2">agreement</th><th class="n" colspan="2">accuracy</th><th class="n">n</th>'
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _point(point: Point) -> str:
    cells = f'<td>{text(point.name)}</td><td class="n">{point.wire_bytes:,.0f}</td>'
    if point.output_error is not None:
        return f'<tr>{cells}<td class="n">{100 * point.output_error:.3g} %</td></tr>'
    known = point.agreement or point.accuracy
    count = "" if known is None else f"{known.n}"
    return f'<tr>{cells}{_share(point.agreement)}{_share(point.accuracy)}<td class="n">{count}</td></tr>'


def _exits(report: Report) -> str:
    if not report.exits:
        return ""
    note = (
        f'<p class="note">Thresholds were chosen on {report.validation_samples} validation samples; coverage and '
        "disagreement are of the hold-out. They promise nothing: the router chooses its own threshold, with a "
        "confidence.</p>"
    )
    return "".join(_exit(entry) for entry in report.exits) + note


def _exit(report: ExitReport) -> str:
    rows = "".join(
        f'<tr><td class="n">{100 * point.tolerated:g} %</td><td class="n">{_threshold(point.threshold)}</td>'
        f"{_share(point.coverage)}{_share(point.disagreement)}</tr>"
        for point in report.points
    )
    table = (
        '<table><thead><tr><th class="n">tolerated</th><th class="n">threshold</th><th class="n" colspan="2">coverage</th>'
        f'<th class="n" colspan="2">disagreement</th></tr></thead><tbody>{rows}</tbody></table>'
    )
    said = f"{text(report.name)}: agrees on {_percent(report.agreement.share)} ({text(_interval(report.agreement))})"
    return f'<h3>{said}</h3><div class="pair"><div>{table}</div><div>{exit_figure(report)}</div></div>'


def _leakage(report: Report, pictures: Mapping[str, bytes]) -> str:
    if not report.leakage and not pictures:
        return ""
    rows = "".join(
        f'<tr><td>{text(", ".join(entry.cut))}</td><td>{text(entry.codec)}</td><td class="n">{entry.ssim:.3f}</td>'
        f'<td class="n">{entry.baseline_ssim:.3f}</td><td class="n">{entry.psnr_db:.1f}</td>'
        f'<td class="n">{entry.samples}</td><td class="n">{entry.steps}</td></tr>'
        for entry in report.leakage
    )
    table = (
        '<table><thead><tr><th>cut</th><th>as</th><th class="n">SSIM</th><th class="n">of the mean picture</th>'
        f'<th class="n">PSNR, dB</th><th class="n">n</th><th class="n">steps</th></tr></thead><tbody>{rows}</tbody></table>'
        if rows
        else ""
    )
    shown = "".join(
        f'<figure><img alt="{text(caption)}" src="data:image/png;base64,{base64.b64encode(data).decode()}"/>'
        f"<figcaption>{text(caption)}: originals above, rebuilt from what crosses below</figcaption></figure>"
        for caption, data in pictures.items()
        if data.startswith(PNG)
    )
    note = (
        '<p class="note">A decoder was trained to rebuild the picture from what crosses. SSIM 1 is the picture itself; the '
        "mean picture tells nothing about a sample. Another or longer attack can see more, never less.</p>"
    )
    return f'{table}{note}<div class="pictures">{shown}</div>'


def _latencies(report: Report) -> str:
    if not report.latency_ms:
        return ""
    note = f'<p class="note">Medians on {text(report.host)}, {report.threads} thread{"s" * (report.threads != 1)}.</p>'
    return bars(report.latency_ms, "ms", lambda value: f"{value:,.3f}") + note


def _sizes(report: Report) -> str:
    sizes = {name: float(size) for name, size in report.size_bytes.items()}
    return bars(sizes, "bytes", lambda value: f"{value:,.0f}") if sizes else ""


def _steps(report: Report) -> str:
    rows = []
    for step in report.steps:
        figures = "".join(
            f'<tr><td>{text(name.replace("_", " "))}</td><td class="n">{value:,.6g}</td></tr>'
            for name, value in step.figures.items()
        )
        remarks = "".join(f"<li>{text(remark)}</li>" for remark in step.remarks)
        rows.append(
            f'<div class="step"><h3><code>{text(step.step)}</code> <span class="more">{step.seconds:.1f} s</span></h3>'
            + (f"<ul>{remarks}</ul>" if remarks else "")
            + (f'<table class="small"><tbody>{figures}</tbody></table>' if figures else "")
            + "</div>"
        )
    return "".join(rows)


def _footer(report: Report) -> str:
    labelled = "with" if report.labelled else "without"
    return (
        f"<footer><p>{report.fit_samples + report.validation_samples + report.holdout_samples} samples {labelled} labels: "
        f"{report.fit_samples} to fit, {report.validation_samples} to choose, {report.holdout_samples} to measure on, which "
        f"decided nothing; seed {report.seed}. Intervals: {CONFIDENCE:.0%}, Clopper-Pearson. "
        "Bytes are payload, mean of one sample.</p></footer>"
    )


def _value(share: Proportion | None) -> Value | None:
    return None if share is None else Value(share.share, share.low, share.high)


def _error(point: Point) -> Value | None:
    error = point.output_error
    return None if error is None else Value(error, error, error)


def _share(share: Proportion | None) -> str:
    """Two cells: the share, and its interval."""
    if share is None:
        return '<td class="n">–</td><td class="i"></td>'
    return (
        f'<td class="n">{_percent(share.share)}</td><td class="i">{100 * share.low:.1f} – {100 * share.high:.1f}</td>'
    )


def _interval(share: Proportion) -> str:
    return f"{100 * share.low:.1f} – {100 * share.high:.1f} %, n = {share.n}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _threshold(value: float) -> str:
    return "all escalate" if value > 1 else f"{value:.4f}"


def _amount(what: str, value: float) -> str:
    return f"{value:.3g}" if what == "max_output_error" else f"{100 * value:.3g} %"
