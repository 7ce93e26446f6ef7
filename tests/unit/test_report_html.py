"""The page of a report: every figure is on it, nothing is fetched, and names of others cannot do anything."""

from __future__ import annotations

import base64
import re
from itertools import combinations
from xml.etree import ElementTree

import pytest

from splitmesh.compress.recipe import Budget
from splitmesh.compress.report import Point, Proportion, StepReport
from splitmesh.compress.report_axes import Value, bytes_text, share_axis
from splitmesh.compress.report_html import render
from splitmesh.compress.report_plot import LETTER, points_figure
from tests.unit.compression_reports import full_report, over_budget, png

EVIL = '<script>alert("x")</script>&\' \x00\x1b"onload=\ud800'
SVG = "{http://www.w3.org/2000/svg}"


def parsed(page: str) -> ElementTree.Element:
    return ElementTree.fromstring(page)


def words(page: str) -> str:
    """What a reader sees, styles left out."""
    root = parsed(page)
    for style in root.iter("style"):
        style.text = ""
    return re.sub(r"\s+", " ", " ".join(text.strip() for text in root.itertext()))


def test_every_figure_of_the_report_is_on_the_page() -> None:
    report = full_report()
    seen = words(render(report, {}))
    for point in report.points:
        assert point.agreement is not None
        assert f"{point.name} {point.wire_bytes:,.0f} {100 * point.agreement.share:.1f} %" in seen
        assert f"{100 * point.agreement.low:.1f} – {100 * point.agreement.high:.1f}" in seen
    for step in report.steps:
        assert step.step in seen
        assert all(remark in seen for remark in step.remarks)
        assert all(f"{value:,.6g}" in seen for value in step.figures.values())
    for name, size in report.size_bytes.items():
        assert f"{name} {size:,}" in seen
    for name, ms in report.latency_ms.items():
        assert f"{name} {ms:.3f}" in seen
    for entry in report.exits:
        assert entry.name in seen
        assert all(f"{point.threshold:.4f}" in seen for point in entry.points)
    for leak in report.leakage:
        assert f"{', '.join(leak.cut)} {leak.codec} {leak.ssim:.3f} {leak.baseline_ssim:.3f} {leak.psnr_db:.1f}" in seen
    assert report.host in seen
    assert "1129 to fit, 283 to choose, 402 to measure on" in seen
    assert "seed 7" in seen


@pytest.mark.parametrize(
    ("exceeds", "budget", "said"),
    [
        (False, Budget(max_disagreement=0.02), "Within the budget: disagreement with the original at most 2 %"),
        (True, Budget(max_disagreement=0.02), "Over the budget. disagreement with the original is 3.11 %, allowed 2 %"),
        (False, Budget(), "No budget was set."),
    ],
)
def test_the_first_line_is_the_verdict(exceeds: bool, budget: Budget, said: str) -> None:
    report = full_report().model_copy(update={"budget": budget})
    assert said in words(render(over_budget(report) if exceeds else report, {}))


def test_names_of_others_are_text_and_nothing_else() -> None:
    report = full_report()
    evil = EVIL.replace("\ud800", "")
    step = StepReport(step=evil, seconds=1.0, remarks=(evil,), figures={evil: 1.0})
    point = report.points[0].model_copy(update={"name": evil})
    leak = report.leakage[0].model_copy(update={"cut": (evil,)})
    exit_ = report.exits[0].model_copy(update={"name": evil})
    hostile = report.model_copy(
        update={
            "model": EVIL,
            "host": evil,
            "steps": (step,),
            "points": (point, *report.points[1:]),
            "exits": (exit_,),
            "leakage": (leak,),
            "size_bytes": {evil: 1},
            "latency_ms": {evil: 1.0},
        }
    )
    page = render(hostile, {evil: png()})
    tags = {element.tag.rpartition("}")[2] for element in parsed(page).iter()}
    assert "script" not in tags
    assert not any(name.startswith("on") for element in parsed(page).iter() for name in element.attrib)
    assert page.count("&lt;script&gt;") >= 8
    page.encode()


def test_nothing_is_fetched_and_the_page_is_small() -> None:
    page = render(full_report(), {"cut": png()})
    for attribute in re.findall(r'(?:src|href|url|action)\s*[=(]\s*["\']?([^"\')>]+)', page):
        assert attribute.startswith("data:image/png;base64,")
    assert "http" not in page
    assert len(render(full_report(), {})) < 100_000


def test_pictures_are_shown_as_they_are_and_other_files_are_not() -> None:
    picture = png()
    page = render(full_report(), {"the <cut>": picture, "no picture": b"<svg onload='x'/>"})
    images = list(parsed(page).iter("img"))
    assert [base64.b64decode(image.attrib["src"].partition(",")[2]) for image in images] == [picture]
    assert images[0].attrib["alt"] == "the <cut>"


def test_a_report_of_little_makes_a_page_of_little() -> None:
    report = full_report(
        accuracy_before=None,
        agreement=None,
        accuracy=None,
        points=(),
        exits=(),
        leakage=(),
        size_bytes={},
        latency_ms={},
    )
    seen = words(render(report, {}))
    assert "Steps" in seen
    assert "Exits" not in seen
    assert "What leaks" not in seen


def test_a_model_without_classes_is_drawn_by_its_error() -> None:
    points = tuple(
        Point(name=f"int8 cut, rate {rate}", kind="cut", wire_bytes=1000.0 / (rate + 1), output_error=0.01 * (rate + 1))
        for rate in range(3)
    )
    report = full_report(agreement=None, accuracy=None, accuracy_before=None, output_error=0.01, points=points)
    page = render(report, {})
    assert "Error of the outputs, 0 at the top" in words(page)
    heights = [float(element.attrib["cy"]) for element in parsed(page).iter("circle") if len(element)][:3]
    assert heights == sorted(heights)


def figure(points: tuple[Point, ...]) -> ElementTree.Element:
    def value(point: Point) -> Value | None:
        found = point.agreement
        return None if found is None else Value(found.share, found.low, found.high)

    axis = share_axis("agreement", [found for point in points if (found := value(point))], 402)
    return ElementTree.fromstring(f"<div>{points_figure(points, value, axis)}</div>")


def test_better_is_higher_and_fewer_bytes_are_further_left() -> None:
    report = full_report()
    places = {
        title.text: (float(dot.attrib["cx"]), float(dot.attrib["cy"]))
        for dot in figure(report.points).iter("circle")
        if (title := dot.find("title")) is not None
    }
    best, worst = (next(place for name, place in places.items() if name and f"rate {rate}" in name) for rate in (0, 3))
    assert worst[0] < best[0]
    assert worst[1] > best[1]


def test_labels_of_points_do_not_cover_each_other() -> None:
    boxes = [
        (float(label.attrib["x"]), float(label.attrib["y"]), LETTER * len(label.text or ""))
        for label in figure(full_report().points).iter("text")
        if label.attrib["class"].startswith("label")
    ]
    assert len(boxes) == 24
    for (x, y, width), (other_x, other_y, other_width) in combinations(boxes, 2):
        assert x + width <= other_x or other_x + other_width <= x or abs(y - other_y) >= 12


def test_an_interval_reaches_as_far_as_it_says() -> None:
    """The scale is stretched, and a bar's ends go through the same stretching as its point."""
    point = Point(name="int8 cut, rate 0", kind="cut", wire_bytes=100, agreement=Proportion.of(95, 100))
    assert point.agreement is not None
    axis = share_axis("agreement", [Value(0.95, point.agreement.low, point.agreement.high)], 100)
    assert axis.place(1.0) == pytest.approx(1.0)
    assert axis.place(0.95) < axis.place(0.99) < 1
    (bar,) = (path for path in figure((point,)).iter("path") if path.attrib["class"].startswith("bar"))
    top, bottom = (float(number) for number in re.findall(r"M\S+ ([\d.]+)V([\d.]+)", bar.attrib["d"])[0])
    (dot,) = (dot for dot in figure((point,)).iter("circle") if len(dot))
    assert top < float(dot.attrib["cy"]) < bottom


@pytest.mark.parametrize(
    ("size", "said"),
    [(5, "5 B"), (9.5, "9.5 B"), (612.4, "612 B"), (1303, "1.3 kB"), (98312, "98.3 kB"), (2.5e6, "2.5 MB")],
)
def test_sizes_are_said_for_people(size: float, said: str) -> None:
    assert bytes_text(size) == said
