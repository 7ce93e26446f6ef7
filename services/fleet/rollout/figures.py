"""What a deployment looks like from outside: hosts by where they stand, and the evidence in one sentence. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from services.fleet.rollout.evidence import Tally
from services.fleet.rollout.strategy import Gate
from services.fleet.rollout.values import UNDER_WAY, Figures, Stage

if TYPE_CHECKING:
    from services.fleet.rollout.rollout import Rollout

_AWAY = (Stage.WAITING, *UNDER_WAY)


def figures(rollout: Rollout, is_online: Callable[[str], bool]) -> Figures:
    """Of the hosts that no later deployment has; of one that was superseded, of all."""
    found = Figures()
    for host in rollout.hosts.values():
        if host.taken_by and not rollout.status.superseded_by:
            continue
        found.total += 1
        stage = host.stage
        online = stage not in _AWAY or is_online(host.node)
        if stage in (Stage.FAILED, Stage.STUCK):
            found.failed += 1
        elif stage is Stage.SERVING:
            found.serving += 1
        elif stage is Stage.RETURNED:
            found.rolled_back += 1
        elif not online:
            found.offline += 1
        elif stage is Stage.WAITING:
            found.waiting += 1
        else:
            found.under_way += 1
        if online or stage is not Stage.WAITING:
            of_wave = found.tried.setdefault(host.wave, [0, 0])
            of_wave[0] += stage is Stage.FAILED
            of_wave[1] += 1
    return found


def sentence(gate: Gate | None, tally: Tally) -> str:
    """What the pairs show."""
    pairs = tally.pairs
    if gate is None or not pairs.total:
        return "no pair was made yet"
    test = gate.test
    return (
        f"{pairs.total} pairs, wrong {pairs.candidate_loss:.2%} against {pairs.serving_loss:.2%} before; wealth against "
        f"'worse by {test.margin:g}' {test.not_worse(pairs):.3g}, against 'not worse' {test.worse(pairs):.3g}, "
        f"needed {test.needed:g}"
    )
