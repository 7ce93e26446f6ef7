"""Draws a plan: latency against the uplink's rate, a line per way to run the model, the winner's regions shaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from splitmesh.client.partition import PlanRow
from splitmesh.model.placement.problem import Objective
from splitmesh.model.plan_options import placement_name
from splitmesh.model.plan_sweep import Curve, Region, winners

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOW_MBPS, HIGH_MBPS = 0.1, 1000.0
_COLOURS = ("#3366aa", "#cc6633", "#228833", "#aa3377", "#b8860b", "#00899b", "#77439b", "#8c564b")
_FAINT = 4
"""Cloud-only lines that are drawn beside those that win somewhere: the fastest."""


@dataclass(frozen=True, slots=True)
class PricedRow:
    """An option of a plan that was made for this link."""

    row: PlanRow
    uplink_mbps: float
    rtt_ms: float

    @property
    def group(self) -> str:
        """Which line it belongs to: options of one kind that differ by the cut share one."""
        row = self.row
        if row.tiers:
            used = [share.tier for share in row.tiers if share.computes]
            codec = f", {row.codec}" if len(used) == 1 and row.codec else ""
            return (f"{used[0]} only" if len(used) == 1 else " > ".join(used)) + codec
        kind = row.kind.lower().replace("_", " ")
        return f"best {kind}" if row.cut else f"{kind}, {row.codec}" if row.codec else kind

    def curve(self) -> Curve:
        """At any rate of the first link."""
        row = self.row
        transfer = 8 * row.uplink_bytes / (self.uplink_mbps * 1e3)
        stage = row.stages
        link = row.tiers[0].link_ms - self.rtt_ms if row.tiers and row.uplink_bytes else stage["link_ms"]
        return Curve(
            base_ms=row.latency_ms - transfer,
            uplink_bytes=row.uplink_bytes,
            link_base_ms=max(0.0, link - transfer),
            busy_base_ms=max(stage["edge_ms"] + stage["encode_ms"], stage["cloud_ms"]),
        )


def draw_plan(
    rows: Sequence[PricedRow], *, title: str, uplink_mbps: float, objective: Objective, frames_per_s: float = 0.0
) -> Figure:
    """The figure.

    Args:
        rows: feasible options.
        title: what it is about.
        uplink_mbps: the rate that was asked for, marked.
        objective: by what winners are chosen; latency is drawn in any case.
        frames_per_s: an option whose messages the uplink cannot carry so often ends where it could; 0: not known.
    """
    from splitmesh.cli.plotting import new_figure

    max_link_ms = 1e3 / frames_per_s if frames_per_s else math.inf
    curves = [entry.curve() for entry in rows]
    regions = winners(curves, LOW_MBPS, HIGH_MBPS, objective, max_link_ms)
    rates = np.geomspace(LOW_MBPS, HIGH_MBPS, 600)
    lines = dict[str, np.ndarray]()
    for entry, curve in zip(rows, curves, strict=True):
        values = np.where(rates >= curve.least_mbps(max_link_ms), curve.latency_ms(rates), np.inf)
        lines[entry.group] = np.minimum(lines.get(entry.group, np.inf), values)
    shown = _shown(lines, {rows[region.winner].group for region in regions if region.winner is not None})
    colours = {group: _COLOURS[index % len(_COLOURS)] for index, group in enumerate(shown)}
    figure = new_figure(10.0, 6.0)
    axes = figure.add_subplot()
    lowest = min((float(line.min()) for line in lines.values()), default=1.0)
    for group in shown:
        line = np.where(np.isfinite(lines[group]), lines[group], np.nan)
        axes.plot(rates, line, color=colours[group], label=group, linewidth=2)
    axes.set(xscale="log", yscale="log", xlim=(LOW_MBPS, HIGH_MBPS), title=title)
    axes.set(xlabel="uplink of the edge, Mbit/s", ylabel="latency of a mean sample, ms")
    top = max((float(np.nanmax(lines[group][np.isfinite(lines[group])], initial=lowest)) for group in shown), default=1)
    axes.set_ylim(lowest / 1.6, max(lowest * 4, min(top * 1.2, lowest * 400)))
    _shade(axes, regions, rows, colours)
    _mark(axes, uplink_mbps)
    axes.grid(visible=True, which="major", alpha=0.25)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.legend(loc="upper right", framealpha=0.95)
    return figure


def _shown(lines: dict[str, np.ndarray], winning: set[str]) -> list[str]:
    """Those that win somewhere and those of a kind of their own; of the others the fastest."""
    others = [group for group in lines if group not in winning and "only, " in group]
    others.sort(key=lambda group: float(np.log(lines[group][np.isfinite(lines[group])]).sum()))
    left_out = set(others[_FAINT:])
    order = ("edge only", "cloud only", "best split", "best cascade")
    places = {group: next((i for i, kind in enumerate(order) if group.startswith(kind)), 1) for group in lines}
    return sorted((group for group in lines if group not in left_out), key=lambda group: (places[group], group))


def _shade(axes: Axes, regions: Sequence[Region], rows: Sequence[PricedRow], colours: dict[str, str]) -> None:
    """Neighbouring regions of one line are one."""
    merged: list[tuple[float, float, str, list[PlanRow]]] = []
    for region in regions:
        if region.winner is None:
            continue
        entry = rows[region.winner]
        if merged and merged[-1][2] == entry.group and merged[-1][1] == region.low_mbps:
            low, _, group, found = merged.pop()
            merged.append((low, region.high_mbps, group, [*found, entry.row]))
        else:
            merged.append((region.low_mbps, region.high_mbps, entry.group, [entry.row]))
    for low, high, group, found in merged:
        axes.axvspan(low, high, color=colours[group], alpha=0.1, linewidth=0)
        if low > LOW_MBPS:
            axes.axvline(low, color="#555555", linewidth=0.8, linestyle=":")
        width = math.log10(high / low)
        if width < 0.12:  # too narrow for a word; the line's colour tells
            continue
        axes.text(
            math.sqrt(low * high),
            0.015,
            _label(group, found, wide=width > 1.0),
            transform=axes.get_xaxis_transform(),
            ha="center",
            va="bottom",
            fontsize=9,
            color=colours[group],
            rotation=0 if width > 0.7 else 90,
        )


def _label(group: str, found: Sequence[PlanRow], *, wide: bool) -> str:
    if not found[0].cut or not wide:
        return group
    if len(found) > 1:
        return f"{group}\n{len(found)} cuts"
    place = placement_name(found[0].tiers) if found[0].tiers else f"at {' + '.join(found[0].cut)}"
    return f"{group}\n{place if len(place) <= 28 else place[:27] + '…'}"


def _mark(axes: Axes, uplink_mbps: float) -> None:
    if LOW_MBPS <= uplink_mbps <= HIGH_MBPS:
        axes.axvline(uplink_mbps, color="black", linewidth=1.2, linestyle="--")
        axes.annotate(
            f"asked: {uplink_mbps:g}",
            (uplink_mbps, 0.985),
            xycoords=axes.get_xaxis_transform(),
            xytext=(-4, 0),
            textcoords="offset points",
            ha="right",
            va="top",
            rotation=90,
            fontsize=9,
        )
