"""Whatever happens in whatever order, what may be in force together never exceeds what was stated."""

from __future__ import annotations

import asyncio
import math
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.router.shares.ledger import Amount, Lease, next_amounts
from services.router.shares.site import LEFT_S, LOST_S, Grant, Member
from services.router.shares.stated import Site
from splitmesh.routing.sharing import Limits
from tests.unit.share_heads import INTERVAL_S, World, asks

BYTES, MS = 100_000.0, 500.0
HEADS = 4
OFTEN = {"wait": 30, "ask": 20, "pick": 30, "take": 30, "arrive": 10, "join": 10, "leave": 1, "lose": 1}


@dataclass
class Slow:
    """A head whose grants are picked up, taken and heard of as slowly as is allowed."""

    member: Member
    in_force: Amount = field(default_factory=Amount)
    picked: Grant | None = None
    flying: list[tuple[float, Grant]] = field(default_factory=list)
    """When they were taken, and not heard of yet."""

    def possible(self) -> list[Amount]:
        """What may be in force, for nobody knows which messages have arrived."""
        on_their_way = [self.picked, *(grant for _, grant in self.flying)]
        return [self.in_force, *(grant.amount for grant in on_their_way if grant)]

    def arrive(self) -> None:
        if self.flying:
            self.in_force = self.flying.pop(0)[1].amount


class Checked:
    """A site with a budget, and the sum of what is in force at its heads after every step."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.heads: dict[int, Slow] = {}
        self.left: dict[int, tuple[float, Slow]] = {}
        """Until when what they were granted may be in force, by place."""

    def step(self, name: str, place: int, rate: float, worth: float) -> None:
        board, head = self.world.board, self.heads.get(place)
        if name == "join" and head is None:
            self._join(place)
        elif head is None:
            return
        elif name == "ask":
            board.hear(head.member, (asks(per_s=rate, worth=worth),), None)
        elif name == "pick" and head.picked is None:
            head.picked = head.member.send()
        elif name == "take":
            self._take(head)
        elif name == "arrive":
            head.arrive()
        elif name in ("leave", "lose"):
            del self.heads[place]
            self._take(head)
            head.member.leaving = name == "leave"
            board.leave(head.member)
            self.left[place] = self.world.clock.now_s + (LEFT_S if name == "leave" else LOST_S), head
        self.check()

    def _join(self, place: int) -> None:
        """One that is back has not forgotten what it was granted."""
        head = self.heads[place] = Slow(self.world.board.join(f"mec-{place}", "line-4"))
        if (left := self.left.pop(place, None)) is not None:
            head.in_force, head.flying = left[1].in_force, left[1].flying

    def _take(self, head: Slow) -> None:
        if head.picked is not None:
            self.world.board.taken(head.member)
            head.flying.append((self.world.clock.now_s, head.picked))
            head.picked = None

    def wait(self, seconds: float) -> None:
        end_s = self.world.clock.now_s + seconds
        while self.world.clock.now_s < end_s:
            self.world.clock.now_s = min(end_s, self.world.clock.now_s + 0.05)
            now_s = self.world.clock.now_s
            for head in (*self.heads.values(), *(one for _, one in self.left.values())):
                while head.flying and now_s >= head.flying[0][0] + INTERVAL_S:
                    head.arrive()
            self.left = {place: one for place, one in self.left.items() if now_s < one[0]}
            self.world.board.turn()
            self.check()

    def check(self) -> None:
        everybody = [*self.heads.values(), *(one for _, one in self.left.values())]
        for name, limit in (("bytes_per_s", BYTES), ("cloud_ms_per_s", MS)):
            possible = [head.possible() for head in everybody]
            assert math.fsum(max(getattr(one, name) for one in ones) for ones in possible) <= limit


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_the_sum_in_force_never_exceeds_the_budget(seed: int) -> None:
    async def play() -> None:
        world = World()
        await world.board.set_site(Site("line-4", BYTES, MS))
        checked = Checked(world)
        chance = random.Random(seed)
        for _ in range(250):
            name = chance.choices(list(OFTEN), list(OFTEN.values()))[0]
            if name == "wait":
                checked.wait(chance.choice([0.05, 0.1, 0.3, 1.0]))
            else:
                checked.step(name, chance.randrange(HEADS), chance.choice([0, 1, 30, 400]), chance.random())

    asyncio.run(play())


def test_whatever_happened_before_the_budget_is_all_given_away_when_things_calm_down() -> None:
    async def play() -> None:
        world = World()
        await world.board.set_site(Site("line-4", BYTES, MS))
        world.go(1.0)
        for number in range(4):
            world.head(f"mec-{number}").ask(asks(per_s=100 * number))
            world.go(0.3)
        world.board.leave(world.heads.pop().member)
        for _ in range(2):
            world.go(LOST_S / 2 + 1.0)
            for number, head in enumerate(world.heads):
                head.ask(asks(per_s=100 * number))
        world.go(1.0)
        assert sum(head.bytes_per_s for head in world.heads) == pytest.approx(BYTES, rel=0.02)
        assert sum(head.cloud_ms_per_s for head in world.heads) == pytest.approx(MS, rel=0.02)

    asyncio.run(play())


def test_a_lease_holds_the_most_that_may_be_in_force() -> None:
    lease = Lease(0.25)
    assert (lease.told, lease.held(0.0)) == (None, Amount())
    told(lease, Amount(10, 1), 0.0)
    told(lease, Amount(4, 2), 1.0)
    assert lease.held(1.24) == Amount(10, 2)
    assert lease.settles_s() == 1.25
    assert lease.held(1.25) == Amount(4, 2)


def test_a_grant_that_nobody_picked_up_is_replaced_and_one_that_is_on_its_way_is_not() -> None:
    lease = Lease(0.25)
    lease.tell(Amount(10, 0))
    lease.tell(Amount(4, 0))
    assert lease.held(0.0) == Amount(4, 0)
    lease.send()
    lease.tell(Amount(2, 0))
    assert lease.held(0.0) == Amount(4, 0)
    lease.taken(1.0)
    lease.send()
    lease.taken(2.0)
    assert lease.held(2.25) == Amount(2, 0)


def test_a_lease_that_ended_is_held_until_then() -> None:
    lease = Lease(0.25)
    told(lease, Amount(10, 0), 0.0)
    lease.tell(Amount(99, 0))
    lease.end(5.0)
    assert lease.held(4.9) == Amount(10, 0)
    assert lease.held(5.0) == Amount()


def test_a_rise_gets_its_part_of_what_nobody_may_be_using() -> None:
    leases = {name: Lease(0.25) for name in "abc"}
    told(leases["a"], Amount(60, 0), 0.0)
    gone = Lease(0.25)
    told(gone, Amount(10, 0), 0.0)
    gone.end(1.0)
    wanted = {"a": Amount(20, 0), "b": Amount(60, 0), "c": Amount(20, 0)}
    before = next_amounts(wanted, leases, [gone], Limits(100, math.inf), 0.5)
    assert [before[name].bytes_per_s for name in "abc"] == pytest.approx([20, 22.5, 7.5])
    after = next_amounts(wanted, leases, [gone], Limits(100, math.inf), 1.0)
    assert [after[name].bytes_per_s for name in "abc"] == pytest.approx([20, 30, 10])


def told(lease: Lease, amount: Amount, now_s: float) -> None:
    lease.tell(amount)
    lease.send()
    lease.taken(now_s)
