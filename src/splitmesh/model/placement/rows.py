"""The mixed-integer program of a placement problem, built as arrays.

Variables, all 0..1: ``late[v, h]``, whole, whether v runs beyond hop h; ``crosses[g, h]``, whether a group's output
crosses it. What an objective needs besides is added to them.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, milp
from scipy.sparse import csr_array

from splitmesh.model.placement.figures import Floats, Ints
from splitmesh.model.placement.problem import Problem
from splitmesh.model.placement.readers import reader_groups


class Program:
    """The rules of a placement, its limits, and what an objective adds."""

    def __init__(self, problem: Problem, *, margin: float = 0.0) -> None:
        """Limits are lowered by a margin, a share of them."""
        figures, hops = problem.figures, problem.tiers - 1
        self.figures, self.hops = figures, hops
        self._lower, self._upper = np.zeros(0), np.zeros(0)
        self._columns: list[Ints] = []
        self._values: list[Floats] = []
        self._lengths: list[Ints] = []
        self._limits: list[Floats] = []
        self.groups = reader_groups(figures)
        self.late = self.variables(len(figures.survival) * hops).reshape(-1, hops)
        self.crosses = self.variables(len(self.groups.vertex) * hops).reshape(-1, hops)
        self._rules()
        self._refuse(problem)
        for tier, limit in enumerate(problem.max_memory_bytes):
            if limit < math.inf:
                columns, values, constant = self.tier_load(figures.memory_bytes[:, tier], tier)
                self._keep(columns, values, constant, limit, margin)
        for hop, limit in enumerate(problem.max_wire_bytes):
            if limit < math.inf:
                self._keep(*self.hop_load(figures.wire_bytes[:, hop], hop), 0.0, limit, margin)

    def variables(self, count: int, upper: float = 1.0) -> Ints:
        """New ones of 0..upper."""
        begin = len(self._lower)
        self._lower = np.append(self._lower, np.zeros(count))
        self._upper = np.append(self._upper, np.full(count, upper))
        return np.arange(begin, begin + count)

    def fix(self, variables: Ints, value: float) -> None:
        """They can be nothing else. A contradiction leaves no solution."""
        self._lower[variables] = np.maximum(self._lower[variables], value)
        self._upper[variables] = np.minimum(self._upper[variables], value)

    def at_most(self, columns: Ints, values: Floats, limit: float) -> None:
        """One row: the sum of values times variables."""
        kept = values != 0
        self._columns.append(columns[kept])
        self._values.append(values[kept])
        self._lengths.append(np.array([kept.sum()]))
        self._limits.append(np.array([limit]))

    def not_above(self, smaller: Ints, larger: Ints, plus: Ints | None = None) -> None:
        """One row each: smaller <= larger, or smaller <= larger + plus."""
        parts = [smaller.ravel(), larger.ravel()] + ([] if plus is None else [plus.ravel()])
        self._columns.append(np.stack(parts, axis=1).ravel())
        self._values.append(np.tile([1.0] + [-1.0] * (len(parts) - 1), smaller.size))
        self._lengths.append(np.full(smaller.size, len(parts)))
        self._limits.append(np.zeros(smaller.size))

    def tier_load(self, amounts: Floats, tier: int) -> tuple[Ints, Floats, float]:
        """Columns, values and a constant that add up to what a tier's vertices amount to; infinite ones are refused."""
        finite = np.where(np.isinf(amounts), 0.0, amounts)
        if tier == 0:
            return self.late[:, 0], -finite, float(finite.sum())
        if tier == self.hops:
            return self.late[:, -1], finite, 0.0
        return np.concatenate([self.late[:, tier - 1], self.late[:, tier]]), np.concatenate([finite, -finite]), 0.0

    def hop_load(self, amounts: Floats, hop: int) -> tuple[Ints, Floats]:
        """Columns and values that add up to what crosses a hop; infinite ones are refused."""
        own = amounts[self.groups.vertex]
        return self.crosses[:, hop], np.where(np.isinf(own), 0.0, own) * self.groups.share

    def solve(self, objective: Floats, *, rel_gap: float, time_limit_s: float) -> OptimizeResult:
        """HiGHS' answer."""
        lengths = np.concatenate(self._lengths)
        indptr = np.append(0, lengths.cumsum())
        shape = (len(lengths), len(self._lower))
        matrix = csr_array((np.concatenate(self._values), np.concatenate(self._columns), indptr), shape=shape)
        whole = np.zeros(len(self._lower))
        whole[self.late] = 1
        return milp(
            objective,
            integrality=whole,
            bounds=Bounds(self._lower, self._upper),
            constraints=LinearConstraint(matrix, ub=np.concatenate(self._limits)),
            options={"mip_rel_gap": rel_gap, "time_limit": time_limit_s},
        )

    def _keep(self, columns: Ints, values: Floats, constant: float, limit: float, margin: float) -> None:
        """In units of the limit: the solver's tolerance is then a share of it."""
        unit = limit or 1.0
        self.at_most(columns, values / unit, (limit * (1 - margin) - constant) / unit)

    def _rules(self) -> None:
        figures, late, groups = self.figures, self.late, self.groups
        self.not_above(late[:, 1:], late[:, :-1])
        self.not_above(late[figures.read], late[figures.reader])
        self.not_above(late[groups.reader], late[groups.vertex[groups.group]], plus=self.crosses[groups.group])

    def _refuse(self, problem: Problem) -> None:
        """What may not run on a tier or cross a hop, by its time or by a limit that nothing infinite keeps."""
        figures, groups, late = self.figures, self.groups, self.late
        for tier in range(self.hops + 1):
            refused = np.isinf(figures.cost_ms[:, tier])
            if problem.max_memory_bytes and problem.max_memory_bytes[tier] < math.inf:
                refused |= np.isinf(figures.memory_bytes[:, tier])
            if tier == 0:
                self.fix(late[refused, 0], 1.0)
            elif tier == self.hops:
                self.fix(late[refused, -1], 0.0)
            else:
                self.not_above(late[refused, tier - 1], late[refused, tier])
        for hop, rtt_ms in enumerate(problem.rtt_ms):
            closed = np.isinf(figures.transfer_ms[groups.vertex, hop])
            if problem.max_wire_bytes and problem.max_wire_bytes[hop] < math.inf:
                closed |= np.isinf(figures.wire_bytes[groups.vertex, hop]) & (groups.share > 0)
            self.fix(self.crosses[closed, hop], 0.0)
            if math.isinf(rtt_ms):
                self.fix(late[:, hop], 0.0)
