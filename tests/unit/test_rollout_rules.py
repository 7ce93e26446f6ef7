"""The pure parts of deployments: strategies, waves, counts, and what each state does with each word and event."""

from __future__ import annotations

import pytest

from services.fleet.rollout import said
from services.fleet.rollout.evidence import MAX_SOURCES, Ledger
from services.fleet.rollout.rollout import Rollout
from services.fleet.rollout.strategy import Gate, Strategy, divide, read_strategy
from services.fleet.rollout.values import (
    CANARY,
    DONE,
    PAUSED,
    ROLLED_BACK,
    ROLLING,
    ROLLING_BACK,
    SHADOW,
    SUPERSEDED,
    HostRow,
    Plan,
    Stage,
    State,
    Status,
)
from services.fleet.values import Target
from splitmesh.api.fleet.v1 import fleet_pb2 as pb
from splitmesh.api.serving.v1 import serving_pb2
from splitmesh.errors import MeshError, Reason
from splitmesh.routing.paired_test import PairedTest

GATE = Gate(PairedTest(0.02, 0.05), 100, 0.1, 0.1, 20_000, serving_pb2.TRIAL_REFERENCE_FULL_MODEL, 0)
S = Stage


def rollout(state: State, stage: Stage = S.SERVING, *, gate: bool = False) -> Rollout:
    """A deployment of version 2 on one host that had version 1."""
    plan = Plan(
        number=1,
        id="d1",
        model="joints",
        version=2,
        target=Target(every=True),
        asked_target=pb.Target(all=True),
        strategy=Strategy(gate=GATE if gate else None),
        asked_strategy=pb.Strategy(),
        waves=1,
    )
    told = 0 if stage is S.WAITING else 7
    to = {S.TRYING: 1, S.TRIAL: 1, S.RETURNING: 1, S.STUCK: 1}.get(stage, 2)
    host = HostRow("h1", 1, stage, from_version=1, base_version=1, to_version=to, generation=told, task_id="t1")
    return Rollout(plan, Status(state, resumes=ROLLING), [host])


def state_of(
    generation: int = 7, active: int = 1, wanted: str = "", candidate: str = ""
) -> list[serving_pb2.ServingState]:
    """One head's; ``wanted`` and ``candidate`` as phases of version 2."""
    found = serving_pb2.ServingState(model="joints", generation=generation, active_version=active)
    for name, phase in (("wanted", wanted), ("candidate", candidate)):
        if phase:
            getattr(found, name).CopyFrom(
                serving_pb2.VersionState(version=2, phase=serving_pb2.Phase.Value(f"PHASE_{phase}"), reason="BAD")
            )
    return [found]


@pytest.mark.parametrize(
    ("state", "word", "after"),
    [
        (SHADOW, "pause", PAUSED),
        (CANARY, "pause", PAUSED),
        (ROLLING, "pause", PAUSED),
        (PAUSED, "pause", PAUSED),
        (ROLLING_BACK, "pause", ROLLING_BACK),
        (DONE, "pause", None),
        (ROLLED_BACK, "pause", None),
        (SUPERSEDED, "pause", None),
        (SHADOW, "resume", SHADOW),
        (PAUSED, "resume", ROLLING),
        (ROLLING_BACK, "resume", ROLLING_BACK),
        (DONE, "resume", None),
        (ROLLED_BACK, "resume", None),
        (SHADOW, "promote", ROLLING),
        (CANARY, "promote", ROLLING),
        (ROLLING, "promote", ROLLING),
        *[(one, "roll back", ROLLING_BACK) for one in (SHADOW, CANARY, ROLLING, PAUSED, DONE, ROLLING_BACK)],
        (ROLLED_BACK, "roll back", ROLLED_BACK),
    ],
)
def test_what_a_word_does_in_each_state(state: State, word: str, after: State | None) -> None:
    one = rollout(state, gate=state in (SHADOW, CANARY))

    def say() -> None:
        match word:
            case "pause":
                one.pause("lunch")
            case "roll back":
                one.roll_back("bad", 0)
            case _:
                one.resume(promote=word == "promote", now_us=0)

    if after is None:
        with pytest.raises(MeshError) as caught:
            say()
        assert caught.value.reason is Reason.DEPLOYMENT_ENDED
        assert one.status.state == state
        return
    say()
    assert one.status.state == after


@pytest.mark.parametrize(
    ("stage", "heard", "after"),
    [
        (S.WAITING, state_of(active=2), S.WAITING),
        (S.TRYING, state_of(candidate="LOADING"), S.TRYING),
        (S.TRYING, state_of(candidate="SERVING"), S.TRIAL),
        (S.TRYING, state_of(generation=6, candidate="SERVING"), S.TRYING),
        (S.TRYING, state_of(candidate="FAILED"), S.FAILED),
        (S.TRIAL, state_of(candidate="LOADING"), S.TRIAL),
        (S.TRIAL, state_of(candidate="FAILED"), S.FAILED),
        (S.SWITCHING, state_of(wanted="DOWNLOADING"), S.SWITCHING),
        (S.SWITCHING, state_of(active=2, wanted="SERVING"), S.SERVING),
        (S.SWITCHING, state_of(generation=6, active=2), S.SWITCHING),
        (S.SWITCHING, state_of(active=2) + state_of(active=1, wanted="LOADING"), S.SWITCHING),
        (S.SWITCHING, state_of(active=2) + state_of(active=2), S.SERVING),
        (S.SWITCHING, state_of(wanted="FAILED"), S.FAILED),
        (S.SWITCHING, [], S.SWITCHING),
        (S.FAILED, state_of(active=2), S.SERVING),
        (S.SERVING, state_of(wanted="FAILED"), S.FAILED),
        (S.RETURNING, state_of(active=2), S.RETURNING),
        (S.RETURNING, state_of(active=1), S.RETURNED),
        (S.RETURNING, state_of(generation=6, active=1), S.RETURNING),
        (S.RETURNING, state_of(generation=8, active=5), S.RETURNED),
        (S.STUCK, state_of(active=1), S.RETURNED),
    ],
)
def test_what_heads_say_moves_a_host(stage: Stage, heard: list[serving_pb2.ServingState], after: Stage) -> None:
    one = rollout(ROLLING, stage)
    one.heard("h1", heard)
    assert one.hosts["h1"].stage is after
    assert bool(one.changed) is (stage is not after)


@pytest.mark.parametrize(
    ("stage", "ended", "after"),
    [
        (S.SWITCHING, pb.TASK_STATE_DONE, S.SWITCHING),  # the heads say it
        (S.SWITCHING, pb.TASK_STATE_FAILED, S.FAILED),
        (S.TRYING, pb.TASK_STATE_FAILED, S.FAILED),
        (S.TRYING, pb.TASK_STATE_CANCELLED, S.TRYING),  # that says nothing about the version
        (S.SWITCHING, pb.TASK_STATE_CANCELLED, S.SWITCHING),
        (S.RETURNING, pb.TASK_STATE_CANCELLED, S.RETURNING),
        (S.SWITCHING, pb.TASK_STATE_SUPERSEDED, S.SWITCHING),
        (S.RETURNING, pb.TASK_STATE_FAILED, S.STUCK),
        (S.SERVING, pb.TASK_STATE_FAILED, S.SERVING),
    ],
)
def test_what_becomes_of_its_task_moves_a_host(stage: Stage, ended: int, after: Stage) -> None:
    one = rollout(ROLLING, stage)
    one.task_ended("h1", "another", ended, "BAD", "")
    assert one.hosts["h1"].stage is stage
    one.task_ended("h1", "t1", ended, "BAD", "")
    assert one.hosts["h1"].stage is after


@pytest.mark.parametrize("by", ["task", "heads"])
def test_a_withdrawal_is_done_when_its_task_is_or_the_heads_have_no_assignment(by: str) -> None:
    one = rollout(ROLLING_BACK, S.RETURNING)
    one.hosts["h1"].to_version = 0
    one.heard("h1", [])
    assert not one.changed
    if by == "heads":
        one.heard("h1", state_of(generation=0))
    else:
        one.task_ended("h1", "t1", pb.TASK_STATE_DONE, "", "")
    assert one.hosts["h1"].stage is S.RETURNED


def test_a_host_that_a_later_deployment_has_is_not_heard_for_this_one() -> None:
    one = rollout(DONE, S.SWITCHING)
    one.hosts["h1"].taken_by = "d2"
    one.heard("h1", state_of(active=2))
    one.advance(10**15, lambda _: True)
    assert one.hosts["h1"].stage is S.SWITCHING
    assert not one.take_orders()


@pytest.mark.parametrize(
    ("hosts", "percents", "sizes"),
    [
        (10, (100,), [10]),
        (10, (5, 50, 100), [1, 4, 5]),
        (1, (5, 50, 100), [1]),
        (3, (34, 100), [1, 2]),
        (1000, (1, 10, 100), [10, 90, 900]),
    ],
)
def test_hosts_are_divided_into_waves(hosts: int, percents: tuple[int, ...], sizes: list[int]) -> None:
    waves = list(divide([f"h{number}" for number in range(hosts)], percents).values())
    assert [waves.count(wave) for wave in range(1, max(waves) + 1)] == sizes
    assert waves == sorted(waves)


def test_a_strategy_that_says_nothing_has_the_defaults_of_the_contract() -> None:
    found = read_strategy(pb.Strategy(gate=pb.Gate()))
    assert (found.wave_percents, found.max_parallel, found.host_timeout_us) == ((100,), 500, 600_000_000)
    assert found.gate == GATE


def test_sums_count_once_per_source() -> None:
    ledger = Ledger()
    first = serving_pb2.TrialCounts(trial_id="t", source="a", both_right=10, not_made=1)
    again = serving_pb2.TrialCounts(trial_id="t", source="b", both_right=5, candidate_failed=2)
    for counts in (first, first, again, first):
        assert not ledger.take("h1", counts)
    assert (ledger.tally.pairs.total, ledger.tally.not_made, ledger.tally.candidate_failed) == (15, 1, 2)
    assert Ledger(dict(ledger.changed)).tally == ledger.tally


def test_one_host_cannot_fill_the_ledger() -> None:
    ledger = Ledger()
    problems = [
        ledger.take("h1", serving_pb2.TrialCounts(trial_id="t", source=str(number), both_right=1))
        for number in range(MAX_SOURCES + 5)
    ]
    assert len([problem for problem in problems if problem]) == 5
    assert ledger.tally.pairs.total == MAX_SOURCES
    assert not ledger.take("h2", serving_pb2.TrialCounts(trial_id="t", source="1", both_right=1))
    assert "impossibly" in ledger.take("h2", serving_pb2.TrialCounts(trial_id="t", source="1", both_right=2**63))


def test_of_several_heads_the_least_far_is_shown() -> None:
    states = state_of(wanted="SERVING") + state_of(wanted="DOWNLOADING")
    found = said.of_version(states, 2)
    assert found is not None
    assert found.phase == serving_pb2.PHASE_DOWNLOADING
    assert said.of_version(states, 3) is None
