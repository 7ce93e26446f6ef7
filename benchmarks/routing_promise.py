"""Is a promised disagreement kept? Calibration drawn many times over, within one place, and every threshold tested.

The exit and its score stay as they are; what is drawn are the units that the threshold comes from, out of those that neither was
fitted to. Knows cases and the product's choice of a threshold; prints nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress
from scipy.stats import beta

from benchmarks.harness import Result
from benchmarks.routing_cases import Case, Router, Rows
from benchmarks.routing_merit import Choose, Kept, Pool, promise_on_parts, promise_on_population
from splitmesh.routing.constraints import Disagreement
from splitmesh.routing.risk import choose

LIMITS = (0.02, 0.05, 0.1)
RESAMPLINGS, RESAMPLINGS_QUICK = 400, 200
HALVES, POPULATION = "halves of the units", "drawn from the pool"


def promises(made: Sequence[tuple[Case, Router]], delta: float, quick: bool, progress: Progress) -> Result:
    """Of every case of the first division, at every limit that its units could carry."""
    draws = RESAMPLINGS_QUICK if quick else RESAMPLINGS
    rows: list[dict[str, object]] = []
    held: list[tuple[str, Kept]] = []
    n = 0
    for found, router in progress.track([one for one in made if one[0].seed == 0], description="promises"):
        pool = _pool(found, router)
        units = len(np.unique(pool.unit))
        n += len(pool.unit)
        for limit in LIMITS:
            for how, try_it, calibrating in (
                (HALVES, promise_on_parts, units // 2),
                (POPULATION, promise_on_population, units),
            ):
                if (1 - limit) ** calibrating > delta:
                    continue  # too few for any threshold, and nothing to see
                kept = try_it(pool, chosen(limit, delta), limit, draws, found.seed)
                held.append((how, kept))
                rows.append(_row(found, how, limit, calibrating, len(pool.unit), kept))
    least, words = least_kept(held)
    return Result(
        name="router_promise",
        n=n,
        baseline="none: the promise itself",
        goal=f"the promised disagreement is kept in at least {1 - delta:.0%} of {draws} resamplings by unit, in every row",
        measured=words,
        met=None if least is None else least >= 1 - delta,
        rows=rows,
    )


def least_kept(held: Sequence[tuple[str, Kept]]) -> tuple[float | None, str]:
    """The least share of resamplings that kept a promise, None where there was none to keep, and in words how each way did."""
    shares = {
        how: min((kept.kept / kept.draws for by, kept in held if by == how), default=None)
        for how in (POPULATION, HALVES)
    }
    words = {how: "nothing to compare" if share is None else f"{share:.1%}" for how, share in shares.items()}
    return (
        min((share for share in shares.values() if share is not None), default=None),
        f"least {words[POPULATION]} where calibration is drawn from the pool, {words[HALVES]} on the other half of the units",
    )


def chosen(limit: float, delta: float) -> Choose:
    """The product's threshold."""

    def threshold(eases: NDArray[np.float64], wrong: NDArray[np.bool_], unit: NDArray[np.int64], seed: int) -> float:
        reference = np.zeros(len(eases), dtype=np.int64)
        constraint = [Disagreement(limit)]
        return choose(
            eases, wrong.astype(np.int64), reference, constraint, delta=delta, groups=unit, seed=seed
        ).threshold

    return threshold


def _pool(found: Case, router: Router) -> Pool:
    parts: list[Rows] = [found.holdout, found.tests["home"]]

    def joined(of: Callable[[Rows], NDArray[np.generic]]) -> NDArray[np.generic]:
        return np.concatenate([of(rows) for rows in parts])

    return Pool(
        np.asarray(joined(router.eases), dtype=np.float64),
        np.asarray(joined(lambda rows: rows.answer != rows.whole), dtype=np.bool_),
        np.asarray(joined(lambda rows: rows.unit), dtype=np.int64),
    )


def _row(found: Case, how: str, limit: float, calibrating: int, n: int, kept: Kept) -> dict[str, object]:
    low = float(beta.ppf(0.025, kept.kept, kept.draws - kept.kept + 1)) if kept.kept else 0.0
    high = float(beta.ppf(0.975, kept.kept + 1, kept.draws - kept.kept)) if kept.kept < kept.draws else 1.0
    return {
        "line": found.line,
        "site": found.origin,
        "tested on": how,
        "promised": f"{limit:.2f}",
        "kept": f"{kept.kept / kept.draws:.1%} ({low:.1%} to {high:.1%})",
        "resamplings": kept.draws,
        "disagreement": f"{kept.disagreement:.2%}",
        "covered": f"{kept.coverage:.1%}",
        "lets something pass": f"{kept.answering / kept.draws:.0%}",
        "units, pictures": f"{calibrating}, {n}",
    }
