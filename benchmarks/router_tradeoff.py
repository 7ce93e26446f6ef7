"""Accuracy against what escalates and what crosses, by every way to say which samples are hard; and whether promises are kept.

    python -m benchmarks.router_tradeoff [--quick]

Exits are calibrated at one place and used at others (`benchmarks.routing_cases`): real joints of sites A, B, C or all three, on
the other sites and on the bad batch D, with an exit that pools in one cell and with one in 4 x 4 cells; and rendered joints of
four stations. Scores, thresholds and what is usual come from the origin alone; the other sites are only tested on. Ways: the
formulas of KubeEdge Sedna's miners at their own thresholds, random, the best single threshold on the largest probability, what
the product makes (score chosen on validation, threshold from the hold-out), the deferral score by itself, and an oracle that
sends exactly what the exit gets wrong and the tail right. *At equal accuracy*: the fewest samples each order must send for the
accuracy that the best single threshold had there (``equal`` in the table). ``--quick``: one division, one exit on the real
joints, fewer pictures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from benchmarks import routing_rows
from benchmarks.harness import Result, arguments, publish
from benchmarks.routing_cases import Case, Router, Rows, case
from benchmarks.routing_merit import Graded, resampled
from benchmarks.routing_promise import promises
from benchmarks.routing_ways import BEST, DELTA, LOSS, ORACLE, Ways, said
from benchmarks.trained import DATA, ROOT

ORIGINS = ("A", "B", "C", "ABC")
SEEDS = 3
RENDERED, RENDERED_QUICK = 1500, 300
"""Pictures of each station."""
GOAL = 0.20
LEAST_SENT = 30
"""Samples that the best single threshold must send before shares of them say anything."""
DRAWS, DRAWS_QUICK = 500, 100
"""Of units, for intervals."""


class Equal:
    """Samples to send for the accuracy of the best single threshold, over all tests that are added, with draws of units."""

    def __init__(self, draws: int) -> None:
        self._draws = draws
        self.seen: dict[str, int] = {}
        self._drawn: dict[str, NDArray[np.float64]] = {}

    def add(self, orders: Mapping[str, Graded], threshold: float, rows: Rows) -> None:
        """One test; the same units are drawn for every order, and for every test of the same pictures."""
        for name, count in _sent(orders, threshold).items():
            self.seen[name] = self.seen.get(name, 0) + count
        for number, drawn in enumerate(resampled(rows.unit, self._draws, seed=0)):
            again = {name: one.take(drawn) for name, one in orders.items()}
            for name, count in _sent(again, threshold).items():
                self._drawn.setdefault(name, np.zeros(self._draws))[number] += count

    def comparable(self) -> bool:
        """The best single threshold sends enough to save any."""
        return self.seen[BEST] >= LEAST_SENT

    def words(self, name: str) -> str:
        """For the table."""
        share, low, high = self.fewer(name)
        return f"{share:.0%} ({low:.0%} to {high:.0%})" if self.comparable() else f"only {self.seen[BEST]} sent"

    def fewer(self, name: str) -> tuple[float, float, float]:
        """Than the best single threshold sends: share, and its 95 % interval."""
        shares = 1 - self._drawn[name] / np.maximum(self._drawn[BEST], 1)
        low, high = np.quantile(shares, [0.025, 0.975])
        return 1 - self.seen[name] / max(self.seen[BEST], 1), float(low), float(high)


def _sent(orders: Mapping[str, Graded], threshold: float) -> dict[str, int]:
    best = orders[BEST]
    right = best.right_at(threshold)
    found = {name: one.least_escalated(right) for name, one in orders.items()}
    return found | {ORACLE: max(0, right - int(best.exit_right.sum()))}


def cases(quick: bool, progress: Progress) -> list[tuple[str, list[Case]]]:
    """By line; a list is of all divisions and origins."""
    found: list[tuple[str, list[Case]]] = []
    if routing_rows.available():
        for name, cut in list(routing_rows.JOINTS_CUTS.items())[: 1 if quick else None]:
            line = f"joints, {name}"
            made = [
                case(line, rows, cut.grid, origin, seed)
                for seed in range(1 if quick else SEEDS)
                for rows in (routing_rows.joints(cut, seed, progress),)
                for origin in ORIGINS
            ]
            found.append((line, made))
    rows = routing_rows.rendered(RENDERED_QUICK if quick else RENDERED, progress)
    found.append(("rendered", [case("rendered", rows, routing_rows.RENDERED_GRID, one, 0) for one in ORIGINS]))
    return found


def _where(found: Case, site: str) -> str:
    if site == "home":
        return "home"
    return "A-C to D" if found.origin == "ABC" else "other sites"


def measured(
    line: str, made: Sequence[Case], draws: int, progress: Progress
) -> tuple[list[dict[str, object]], list[dict[str, object]], Equal, list[tuple[Case, Router]]]:
    """Rows of the table, rows of every test, and the comparison at equal accuracy under a shift."""
    sums: dict[tuple[str, str], dict[str, float]] = {}
    equal: dict[str, Equal] = {}
    shifted, detail, routers = Equal(draws), [], []
    for found in progress.track(made, description=line):
        ways = Ways(found)
        routers.append((found, ways.ours))
        for site, rows in found.tests.items():
            where = _where(found, site)
            for way, hard in ways.hard(rows, found.seed).items():
                one = said(rows, hard)
                kept = sums.setdefault((where, way), dict.fromkeys(one, 0))
                sums[where, way] = {key: kept[key] + value for key, value in one.items()}
                detail.append(
                    {"line": line, "seed": found.seed, "origin": found.origin, "test": site, "way": way, **one}
                    | {"score": ways.ours.rule.score}
                )
            orders = ways.orders(rows)
            for group in (equal.setdefault(where, Equal(draws)), *([shifted] if site != "home" else [])):
                group.add(orders, ways.best, rows)
    table = [_row(line, where, way, one) for (where, way), one in sums.items()]
    for where, compared in equal.items():
        table += [_equal_row(line, where, name, compared, sums[where, BEST]) for name in compared.seen]
    return table, detail, shifted, routers


def _row(line: str, where: str, way: str, one: Mapping[str, float]) -> dict[str, object]:
    return {
        "line": line,
        "used at": where,
        "way": way,
        "escalated": f"{one['escalated'] / one['n']:.1%}",
        "bytes a sample": f"{one['bytes'] / one['n']:.0f}",
        "accuracy": f"{one['right'] / one['n']:.3f}",
        "as the whole model": f"{one['as whole'] / one['n']:.3f}",
        "bad found": f"{one['caught'] / one['bad']:.3f}",
        "fewer (95 %)": "",
        "n, bad": f"{one['n']:.0f}, {one['bad']:.0f}",
    }


def _equal_row(line: str, where: str, name: str, one: Equal, best: Mapping[str, float]) -> dict[str, object]:
    return {
        "line": line,
        "used at": where,
        "way": f"equal: {name}",
        "escalated": f"{one.seen[name] / best['n']:.1%}",
        "bytes a sample": "",
        "accuracy": f"{best['right'] / best['n']:.3f}",
        "as the whole model": "",
        "bad found": "",
        "fewer (95 %)": "" if name == BEST else one.words(name),
        "n, bad": f"{best['n']:.0f}, {best['bad']:.0f}",
    }


def met(verdicts: Sequence[Equal]) -> bool | None:
    """Whether every line that can be compared has reached the goal; None where none can."""
    compared = [one.fewer("ours")[0] >= GOAL for one in verdicts if one.comparable()]
    return all(compared) if compared else None


def main() -> None:
    """All lines, then the promises."""
    quick = arguments(__doc__).quick
    rows, detail, verdicts = (
        list[dict[str, object]](),
        list[dict[str, object]](),
        list[tuple[str, Equal]](),
    )
    routers: list[tuple[Case, Router]] = []
    with Progress() as progress:
        for line, made in cases(quick, progress):
            table, tests, shifted, used = measured(line, made, DRAWS_QUICK if quick else DRAWS, progress)
            rows, detail, routers = rows + table, detail + tests, routers + used
            verdicts.append((line, shifted))
        kept = promises(routers, DELTA, quick, progress)
    said_all = "; ".join(f"{line}: {one.words('ours')}" for line, one in verdicts)
    skipped = "" if routing_rows.available() else f"; real joints skipped, no pictures in {DATA}"
    publish(
        Result(
            name="router_tradeoff",
            n=sum(len(test) for found, _ in routers for test in found.tests.values()),
            baseline=f"{BEST} on the largest probability, read off the origin for {LOSS:.1%} less than the whole model",
            goal=f"at equal accuracy {GOAL:.0%} fewer escalations than it at other sites than the origin, on every line",
            measured=f"fewer by ours at other sites: {said_all}{skipped}",
            met=met([one for _, one in verdicts]),
            rows=rows,
        )
    )
    path = ROOT / "build" / "bench" / "router_tradeoff_tests.json"
    path.write_text(json.dumps(detail, indent=1) + "\n")
    publish(kept)


if __name__ == "__main__":
    main()
