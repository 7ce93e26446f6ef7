"""How soon is drift noticed, by which watch, how often is it imagined, and what does it cost before and after?

    python -m benchmarks.drift [--quick]

One camera, ten pictures a second, watched as the router watches it (`services.router.drift.line`, `benchmarks.drift_streams`): a
threshold from calibration, 1.5 % of sure answers audited, a report every fifty samples, and what a drift tightens is in force
from the next sample on. Real joints of sites A to C, then the bad batch D; rendered joints of stations A to C, then station A
with its light, focus or camera changed, or station D. Streams draw from pictures that neither the exit nor its threshold was
fitted to, the calm ones from ``home`` alone (28 % of the units outside the fit, so n is small), with replacement and by unit, for
there are too few real ones: a stream repeats pictures. *Alike*: the walk over eases in which each is .95 like the one before.
``--quick``: three streams of each, fewer changes.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageFilter
from rich.progress import Progress

from benchmarks import routing_rows
from benchmarks.drift_streams import Pool, Watched, alike, by_units
from benchmarks.harness import Result, arguments, publish
from benchmarks.routing_cases import Case, Rows, case, router, rows_of
from benchmarks.trained import DATA
from examples.solder_joints.render import LABELS
from services.router.drift.events import DriftEvent
from services.router.goals import Goals
from splitmesh.routing.constraints import Disagreement
from splitmesh.routing.risk import choose

AUDIT_SHARE = 0.015
DELTA = 0.1
SEEDS, SEEDS_QUICK = 20, 3
STABLE = 20_000
"""Samples of a stable stream: an ease is watched from its 512th mean of 16 samples on."""
CALM = 10_000
"""Before a change."""
MOST = 20_000
"""Samples in which a change may be noticed."""
AFTER = 1_000
"""Samples after it was noticed, of which the disagreement is counted."""
MEMORY = 0.95
EACH, EACH_QUICK = 300, 60
"""Pictures of each change."""
CHANGED_SEED = 53_001

CHANGES: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "light x 0.9": lambda image: image.point([round(value * 0.9) for value in range(256)]),
    "light x 0.7": lambda image: image.point([round(value * 0.7) for value in range(256)]),
    "light x 0.5": lambda image: image.point([round(value * 0.5) for value in range(256)]),
    "gain x 1.3": lambda image: image.point([min(255, round(value * 1.3)) for value in range(256)]),
    "blur 1 px": lambda image: image.filter(ImageFilter.GaussianBlur(1)),
    "blur 2 px": lambda image: image.filter(ImageFilter.GaussianBlur(2)),
    "blur 4 px": lambda image: image.filter(ImageFilter.GaussianBlur(4)),
    "turned 5 degrees": lambda image: _turned(image, 5),
    "turned 15 degrees": lambda image: _turned(image, 15),
    "turned 45 degrees": lambda image: _turned(image, 45),
}
QUICK_CHANGES = ("light x 0.5", "blur 4 px")


def _turned(image: Image.Image, degrees: float) -> Image.Image:
    """Corners get the mean grey."""
    grey = round(float(np.asarray(image).mean()))
    return image.rotate(degrees, resample=Image.Resampling.BILINEAR, fillcolor=grey)


@dataclass(frozen=True, eq=False)
class Scene:
    """A line, calibrated, and what may become of it."""

    name: str
    goals: Goals
    labels: tuple[str, ...]
    threshold: float
    stable: Pool
    changed: Mapping[str, Pool]

    def watched(self, seed: int) -> Watched:
        """A head and a router that know nothing yet."""
        return Watched(self.threshold, self.goals, self.labels, seed)


def scene(found: Case, labels: tuple[str, ...], limit: float, changed: Mapping[str, Rows]) -> Scene:
    """The exit, its rule and threshold as the product makes them; strange samples escalate."""
    made = router(found, limit, DELTA)
    held = found.holdout
    eases = made.eases(held, escalate_unusual=True)
    promised = choose(eases, held.answer, held.whole, [Disagreement(limit)], delta=DELTA, groups=held.unit)
    return Scene(
        found.line,
        Goals(limit, DELTA, AUDIT_SHARE),
        labels,
        promised.threshold,
        Pool.of(made, found.tests["home"]),
        {name: Pool.of(made, rows) for name, rows in {"D": found.tests["D"], **changed}.items()},
    )


def scenes(quick: bool, progress: Progress) -> Iterator[Scene]:
    """The real line where its pictures are, and the rendered one."""
    if routing_rows.available():
        cut = routing_rows.JOINTS_CUTS["one cell"]
        line = routing_rows.joints(cut, 0, progress)
        yield scene(case("joints", line, cut.grid, "ABC", 0), ("ok", "ng"), 0.05, {})
    line = routing_rows.rendered(300 if quick else 1500, progress)
    found = case("rendered", line, routing_rows.RENDERED_GRID, "ABC", 0)
    changes = {name: CHANGES[name] for name in (QUICK_CHANGES if quick else CHANGES)}
    other = routing_rows.changed(EACH_QUICK if quick else EACH, CHANGED_SEED, changes, progress)
    rows = rows_of(found.exit, other)
    parts = {name: rows.take(other.unit == number) for number, name in enumerate(changes)}
    yield scene(found, LABELS, 0.02, {name: replace(part, unit=np.arange(len(part))) for name, part in parts.items()})


def stable(one: Scene, how: str, seeds: int, progress: Progress) -> dict[str, object]:
    """False alarms; after each somebody resolves it, and the watches it was at begin anew."""
    kinds = Counter[str]()
    audits = 0
    for seed in progress.track(range(seeds), description=f"{one.name}, stable, {how}"):
        rng, watched = np.random.default_rng((1, seed)), one.watched(seed)
        drawn = by_units(one.stable, rng) if how == "by unit" else alike(one.stable, rng, MEMORY)
        for _, sample in zip(range(STABLE), drawn, strict=False):
            if new := watched.saw(one.stable, sample):
                kinds.update(_of(event) for event in new)
                watched.resolve()
        audits += watched.audits
    alarms = kinds.total()
    return {
        "line": one.name,
        "change": f"none, {how}",
        "unlike": f"{one.stable.disagreement(one.threshold):.2%}",
        "strange": f"{np.mean(one.stable.strange):.1%}",
        "noticed": f"{alarms} false in {seeds * STABLE:,}: {alarms / (seeds * STABLE) * 10_000:.2f} per 10,000",
        "median, p90": "",
        "by": _by(kinds),
        "unlike until noticed": "",
        "unlike after": "",
        "stays after": "",
        "n": len(one.stable.ease),
    }


def _of(event: DriftEvent) -> str:
    place = f"class {event.label}" if event.label else "camera" if event.camera else "all"
    return f"{event.kind} of {place}"


def _by(kinds: Counter[str]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())


@dataclass
class _Run:
    """One change in one stream."""

    until: int | None = None
    """Samples until it was noticed; None: not within ``MOST``."""
    kind: str = ""
    wrong_before: float = 0.0
    wrong_after: float = 0.0
    stays_after: float = 0.0


def run(watched: Watched, pool: Pool, seed: int) -> _Run:
    """From the change on."""
    found = _Run()
    drawn = by_units(pool, np.random.default_rng((2, seed)))
    watched.begin()
    for count, sample in zip(range(1, MOST + 1), drawn, strict=False):
        new: list[DriftEvent] = watched.saw(pool, sample)
        if new:
            found.until, found.kind = count, _of(new[0])
            break
    found.wrong_before = watched.wrong / watched.samples
    if found.until is None:
        return found
    watched.begin()
    for _, sample in zip(range(AFTER), drawn, strict=False):
        watched.saw(pool, sample)
    found.wrong_after, found.stays_after = watched.wrong / watched.samples, watched.stayed / watched.samples
    return found


def changes(one: Scene, seeds: int, progress: Progress) -> list[dict[str, object]]:
    """Every change after the same calm in every stream."""
    runs: dict[str, list[_Run]] = {name: [] for name in one.changed}
    for seed in progress.track(range(seeds), description=f"{one.name}, changes"):
        watched = one.watched(seed)
        for _, sample in zip(range(CALM), by_units(one.stable, np.random.default_rng((3, seed))), strict=False):
            if watched.saw(one.stable, sample):
                watched.resolve()
        for name, pool in one.changed.items():
            runs[name].append(run(copy.deepcopy(watched), pool, seed))
    return [_row(one, name, found) for name, found in runs.items()]


def _row(one: Scene, name: str, found: list[_Run]) -> dict[str, object]:
    noticed = [each for each in found if each.until is not None]
    until = [each.until if each.until is not None else MOST + 1 for each in found]
    p50, p90 = (_samples(value) for value in np.quantile(until, [0.5, 0.9], method="higher"))
    pool = one.changed[name]

    def mean(of: Callable[[_Run], float], over: list[_Run]) -> str:
        return f"{np.mean([of(each) for each in over]):.2%}" if over else ""

    return {
        "line": one.name,
        "change": name,
        "unlike": f"{pool.disagreement(one.threshold):.2%}",
        "strange": f"{np.mean(pool.strange):.1%}",
        "noticed": f"{len(noticed)} of {len(found)}",
        "median, p90": f"{p50}, {p90}",
        "by": _by(Counter(each.kind for each in noticed)),
        "unlike until noticed": mean(lambda each: each.wrong_before, found),
        "unlike after": mean(lambda each: each.wrong_after, noticed),
        "stays after": mean(lambda each: each.stays_after, noticed),
        "n": len(pool.ease),
    }


def _samples(value: float) -> str:
    return f"> {MOST:,}" if value > MOST else f"{value:,.0f}"


def main() -> None:
    """Stable streams first, then changes."""
    quick = arguments(__doc__).quick
    seeds = SEEDS_QUICK if quick else SEEDS
    rows: list[dict[str, object]] = []
    with Progress() as progress:
        made = list(scenes(quick, progress))
        for one in made:
            rows += [stable(one, how, seeds, progress) for how in ("by unit", "alike .95")]
            rows += changes(one, seeds, progress)
    calm = "; ".join(
        f"{row['line']}, {row['change']}: {row['noticed']}" for row in rows if str(row["change"]).startswith("none")
    )
    skipped = "" if routing_rows.available() else f"; real joints skipped, no pictures in {DATA}"
    publish(
        Result(
            name="drift",
            n=sum(int(str(row["n"])) for row in rows if row["change"] != "none, alike .95"),
            baseline="none; audits 1.5 % of sure answers",
            goal="none was stated",
            measured=f"false alarms: {calm}{skipped}",
            met=None,
            rows=rows,
        )
    )


if __name__ == "__main__":
    main()
