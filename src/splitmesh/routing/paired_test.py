"""Says whether a candidate is as good as what serves, from pairs of answers, at any time one likes to look.

A pair is one sample that both versions answered; its difference d = loss(candidate) - loss(serving) is -1, 0 or 1. Two bets are
run on it, each against a claim:

- *not worse*: against "the mean of d is at least the margin". Who rejects it has shown that the candidate is wrong at most
  ``margin`` more often.
- *worse*: against "the mean of d is at most 0". Who rejects it has shown that the candidate is wrong more often.

Testing by betting (Shafer 2021; Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", 2023): a
wealth of 1 is multiplied for each pair by ``1 + bet * (margin - d)``, or ``1 + bet * d``. While the claim holds nobody can
expect to gain, so the probability that the wealth *ever* reaches ``1 / alpha`` is at most ``alpha`` (Ville 1939): one may look
after every pair and stop whenever one likes. A test made for one look has no such right: looking all the time it is wrong ever
more often.

A bet must be settled before the pair that it is put on is seen. Here that is so in the plainest way: the wealth is spread once,
before the first pair, over a grid of bets that never change (the hedged, or universal, portfolio: Cover 1991; Orabona and Jun
2024), and the total is looked at. Bets that turn out well grow into most of the total by themselves, which is adaptive betting
without a rule for it; against the best bet in hindsight at most the logarithm of the grid's size is lost. And because
multiplication does not care for order, the total depends on nothing but how many pairs of each kind there were: pairs may come
in batches of any size, from any number of hosts and in any order, and the state is three counts.

Assumed: given the past, the mean of every pair's difference is on the claim's side while the claim holds; pairs of one unit
that resemble each other count as more than they are. Not covered: a serving version that itself changes meanwhile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum, auto
from functools import cache

from splitmesh.errors import field_error

GRID = 48
"""Bets of one portfolio, evenly spaced on a logarithmic scale."""
LEAST_BET = 0.01
"""As a share of the greatest one: wins for a mean of a few thousandths of the range, some ten thousand pairs, are still made."""
GREATEST_BET = 0.95
"""As a share of the one that can lose everything."""
MAX_WEALTH = 1e300


@dataclass(frozen=True, slots=True)
class Pairs:
    """How many pairs of each kind there were."""

    both_right: int = 0
    only_serving_right: int = 0
    only_candidate_right: int = 0
    both_wrong: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.both_right + self.only_serving_right + self.only_candidate_right + self.both_wrong

    @property
    def equal(self) -> int:
        """Those that say nothing for either."""
        return self.both_right + self.both_wrong

    @property
    def serving_loss(self) -> float:
        """Share that the serving version answers wrongly; NaN without a pair."""
        return (self.only_candidate_right + self.both_wrong) / self.total if self.total else math.nan

    @property
    def candidate_loss(self) -> float:
        """Share that the candidate answers wrongly; NaN without a pair."""
        return (self.only_serving_right + self.both_wrong) / self.total if self.total else math.nan

    def __add__(self, other: Pairs) -> Pairs:
        return Pairs(
            self.both_right + other.both_right,
            self.only_serving_right + other.only_serving_right,
            self.only_candidate_right + other.only_candidate_right,
            self.both_wrong + other.both_wrong,
        )


class Verdict(Enum):
    """What is shown."""

    OPEN = auto()
    """Neither."""
    NOT_WORSE = auto()
    """Worse by less than the margin, if at all."""
    WORSE = auto()
    """Worse."""


@dataclass(frozen=True, slots=True)
class PairedTest:
    """The two bets.

    Args:
        margin: tolerated difference, in 0..1, both excluded.
        alpha: probability of each kind of mistake, in 0..1, both excluded.

    Raises:
        MeshError: FIELD_INVALID.
    """

    margin: float
    alpha: float

    def __post_init__(self) -> None:
        for name in ("margin", "alpha"):
            value = getattr(self, name)
            if not 0 < value < 1:
                raise field_error(name, f"is {value}, expected a number between 0 and 1, both excluded")

    @property
    def needed(self) -> float:
        """What a wealth has to reach."""
        return 1 / self.alpha

    def not_worse(self, pairs: Pairs) -> float:
        """Wealth of the bet against "worse by the margin or more"."""
        return _wealth(_against(-1.0, self.margin), pairs)

    def worse(self, pairs: Pairs) -> float:
        """Wealth of the bet against "not worse"."""
        return _wealth(_against(1.0, 0.0), pairs)

    def verdict(self, pairs: Pairs) -> Verdict:
        """Of all pairs so far. Where both are shown the candidate is worse by less than the margin, which was allowed."""
        if self.not_worse(pairs) >= self.needed:
            return Verdict.NOT_WORSE
        return Verdict.WORSE if self.worse(pairs) >= self.needed else Verdict.OPEN


@cache
def _against(sign: float, offset: float) -> tuple[tuple[float, float, float], ...]:
    """For each bet what a pair with d = -1, 0 and 1 adds to the logarithm of its part of the wealth."""
    greatest = GREATEST_BET / (1.0 - offset)  # the least gain is offset - 1
    step = LEAST_BET ** (1 / (GRID - 1))
    bets = [greatest * step**power for power in range(GRID)]
    lower, even, upper = (math.fsum((offset, sign * difference)) for difference in (-1.0, 0.0, 1.0))
    return tuple((math.log1p(bet * lower), math.log1p(bet * even), math.log1p(bet * upper)) for bet in bets)


def _wealth(bets: tuple[tuple[float, float, float], ...], pairs: Pairs) -> float:
    less, equal, more = pairs.only_candidate_right, pairs.equal, pairs.only_serving_right
    parts = [less * lower + equal * even + more * upper for lower, even, upper in bets]
    best = max(parts)
    total = best + math.log(sum(math.exp(part - best) for part in parts) / len(parts))
    return math.exp(total) if total < math.log(MAX_WEALTH) else MAX_WEALTH
