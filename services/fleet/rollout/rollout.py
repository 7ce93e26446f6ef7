"""The course of one deployment: SHADOW -> CANARY -> ROLLING, wave by wave -> DONE; PAUSED; ROLLING_BACK -> ROLLED_BACK.

Told what hosts say, who is connected and what time it is, it says what hosts are to be told. Knows no store, no stream and no
clock; whoever drives it writes down what changed before anybody is told, and builds it anew from what is written when that fails.

A host that is not connected and was not told holds up nothing as long as another one of its wave serves: it is told when it
comes. One that was told counts until its time is over, wherever it is: the version may be what took it away. The time runs from
the order, or from when the service began; then nothing is decided for a while either, for nobody is connected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from services.fleet.rollout import said
from services.fleet.rollout.evidence import Ledger
from services.fleet.rollout.figures import figures, sentence
from services.fleet.rollout.strategy import Gate
from services.fleet.rollout.values import (
    ACTIVE,
    CANARY,
    DONE,
    ENDED,
    MOVING,
    NO_STATE,
    PAUSED,
    ROLLED_BACK,
    ROLLING,
    ROLLING_BACK,
    SHADOW,
    TRIAL_STATES,
    HostRow,
    Order,
    Plan,
    Stage,
    State,
    Status,
)
from splitmesh.api.fleet.v1 import fleet_pb2
from splitmesh.api.serving.v1 import serving_pb2
from splitmesh.errors import MeshError, Reason
from splitmesh.routing.paired_test import Verdict

IsOnline = Callable[[str], bool]

GRACE_US = 15_000_000
"""After the service began nothing is decided by who is connected: time for every agent to come back."""

_ALIAS = "; its alias: "
_LATE = Reason.DEADLINE_EXPIRED.value


class Rollout:
    """One deployment.

    Attributes:
        plan: what was asked for.
        status: where it stands.
        hosts: where each host stands.
        ledger: what its trials have counted.
        changed: hosts whose rows changed since they were saved.
        touched: the status did.
        opened_us: when the service began, of one that stood then; 0: it was made later.
    """

    def __init__(self, plan: Plan, status: Status, hosts: Iterable[HostRow], ledger: Ledger | None = None) -> None:
        self.plan = plan
        self.status = status
        self.hosts = {host.node: host for host in hosts}
        self.ledger = ledger or Ledger()
        self.changed: set[str] = set()
        self.touched = False
        self.opened_us = 0
        self._orders: dict[str, Order] = {}

    @property
    def is_active(self) -> bool:
        """It has not ended."""
        return self.status.state in ACTIVE

    @property
    def is_moving(self) -> bool:
        """Time alone may change it."""
        if self.status.state == PAUSED:
            return False
        return self.is_active or any(host.stage in MOVING for host in self.hosts.values())

    @property
    def has_gone(self) -> bool:
        """Nothing will ever change it by itself any more."""
        if self.status.alias_moved and self.status.state == ROLLED_BACK:
            return False  # it has to go back
        back = (Stage.RETURNING, Stage.STUCK)
        return self.status.state not in (*ACTIVE, DONE) and not any(host.stage in back for host in self.hosts.values())

    def take_orders(self) -> list[Order]:
        """What hosts are to be told now; each is given once."""
        orders, self._orders = list(self._orders.values()), {}
        return orders

    # ---- what is heard

    def told(self, node: str, generation: int, task_id: str) -> None:
        """The order of a host was written down."""
        host = self.hosts[node]
        host.generation, host.task_id = generation, task_id

    def heard(self, node: str, states: said.States) -> None:
        """What all heads of a host say of the model now."""
        host = self.hosts.get(node)
        if host is None or host.taken_by or not host.generation:
            return
        failed = said.failure(states, host.to_version, host.generation)
        match host.stage:
            case Stage.TRYING | Stage.TRIAL:
                if refused := said.failure(states, self.plan.version, host.generation):
                    self._move(host, Stage.FAILED, *refused)
                elif host.stage is Stage.TRYING and said.tries(states, self.plan.version, host.generation):
                    self._move(host, Stage.TRIAL)
            case Stage.SWITCHING | Stage.SERVING | Stage.FAILED if host.to_version == self.plan.version:
                if said.serves(states, self.plan.version, host.generation):
                    self._move(host, Stage.SERVING)
                elif failed:
                    self._move(host, Stage.FAILED, *failed)
            case Stage.RETURNING | Stage.STUCK:
                if said.generations(states)[0] > host.generation:  # whoever came after has the host now
                    self._move(host, Stage.RETURNED)
                elif host.to_version == 0:
                    if said.withdrawn(states, host.generation):
                        self._move(host, Stage.RETURNED)
                elif said.serves(states, host.to_version, host.generation):
                    self._move(host, Stage.RETURNED)
                elif failed:
                    self._move(host, Stage.STUCK, *failed)

    def counted(self, node: str, counts: serving_pb2.TrialCounts) -> None:
        """What a head of a host has counted; of another trial it is not heard."""
        host = self.hosts.get(node)
        if host is None or counts.trial_id not in (self._trial_id(SHADOW), self._trial_id(CANARY)):
            return
        if problem := self.ledger.take(node, counts):
            self._move(host, host.stage, host.reason, problem)

    def task_ended(self, node: str, task_id: str, state: int, reason: str, message: str) -> None:
        """What became of the task that brought a host its order; one that was cancelled says nothing about the version."""
        host = self.hosts.get(node)
        if host is None or host.taken_by or host.task_id != task_id or host.stage not in MOVING:
            return
        returning = host.stage is Stage.RETURNING
        if state == fleet_pb2.TASK_STATE_FAILED:
            why = reason or Reason.INTERNAL.value
            self._move(host, Stage.STUCK if returning else Stage.FAILED, why, message or "its task was ended")
        elif state == fleet_pb2.TASK_STATE_DONE and returning and host.to_version == 0:
            self._move(host, Stage.RETURNED)

    def add(self, host: HostRow) -> None:
        """A host that came later and that the target means."""
        self.hosts[host.node] = host
        self.changed.add(host.node)

    def saved(self) -> None:
        """Everything is written down."""
        self.changed.clear()
        self.ledger.changed.clear()
        self.touched = False

    @property
    def is_unsaved(self) -> bool:
        """Something is not written down."""
        return bool(self.touched or self.changed or self.ledger.changed or self._orders)

    def alias_is(self, *, moved: bool, was: int, problem: str = "") -> None:
        """What became of the alias: whether it points at the version because of this deployment, and where it did before."""
        status = self.status
        status.alias_moved, status.alias_from = moved, was
        said_before, _, _ = status.message.partition(_ALIAS)
        status.message = said_before + (f"{_ALIAS}{problem}" if problem else "")
        self.touched = True

    # ---- an operator's words

    def pause(self, reason: str) -> None:
        """Nothing is begun until it is resumed; DEPLOYMENT_ENDED. Fine when it is paused, or goes back."""
        self._require_going_on()
        if self.status.state in (*TRIAL_STATES, ROLLING):
            self._enter(PAUSED, reason or "somebody paused it", resumes=self.status.state)

    def resume(self, *, promote: bool, now_us: int) -> None:
        """Goes on, with ``promote`` as if the trial had shown that the version is good; DEPLOYMENT_ENDED."""
        self._require_going_on()
        status = self.status
        if status.state == PAUSED:
            state = status.resumes
            self._enter(state, "somebody let it go on")
            if (gate := self.plan.strategy.gate) and state in TRIAL_STATES:
                status.trial_since_us = now_us
                status.pairs_limit = self.ledger.tally.pairs.total + gate.max_pairs
        if promote and status.state in TRIAL_STATES:
            self._promote(f"somebody decided so after {sentence(self.plan.strategy.gate, self.ledger.tally)}")

    def roll_back(self, why: str, now_us: int) -> None:
        """Every host goes back to what it had; fine when that is under way or done. DEPLOYMENT_ACTIVE: a later one has hosts."""
        if self.status.state in (ROLLING_BACK, ROLLED_BACK):
            return
        if later := next((host.taken_by for host in self.hosts.values() if host.taken_by), ""):
            raise MeshError(
                Reason.DEPLOYMENT_ACTIVE,
                f"deployment {later} came later and has hosts of this one: roll that back first",
                metadata={"deployment": later},
            )
        self._orders.clear()
        for host in self.hosts.values():
            if not host.generation:
                self._move(host, Stage.RETURNED)
                continue
            # The alias that the host followed points at the version by now: withdrawn, it would follow it there.
            pinned = host.base_version if self.status.alias_moved else 0
            self._order(host, Stage.RETURNING, Order(host.node, host.from_version or pinned, back=True), now_us)
        self._enter(ROLLING_BACK, why)

    # ---- the course

    def advance(self, now_us: int, is_online: IsOnline) -> None:
        """Goes as far as what is known allows."""
        gone = None
        while gone != (gone := (self.status.state, self.status.wave)):
            match self.status.state:
                case state if state in TRIAL_STATES:
                    self._try(now_us, is_online)
                case state if state == ROLLING:
                    self._roll(now_us, is_online)
                case state if state == DONE:
                    self._switch(now_us, is_online, self.plan.waves)
                    if self.changed and not self._is_early(now_us):
                        self._say(self._served(is_online))
                case state if state == ROLLING_BACK:
                    self._return(now_us, is_online)
        if self.touched or self.changed:
            self.status.update_time_us = now_us

    def _try(self, now_us: int, is_online: IsOnline) -> None:
        gate = self._gate()
        status, tally = self.status, self.ledger.tally
        if not status.trial_since_us:
            status.trial_since_us, status.pairs_limit, self.touched = now_us, gate.max_pairs, True
        trying = [host for host in self.hosts.values() if self._is_on_trial(host)]
        self._time_out(trying, now_us, "does not try the version")
        if failed := next((host for host in trying if host.stage is Stage.FAILED), None):
            self.roll_back(f"{failed.node} cannot use version {self.plan.version}: {failed.message}", now_us)
            return
        verdict, pairs = gate.test.verdict(tally.pairs), tally.pairs.total
        shown = sentence(gate, tally)
        if verdict is Verdict.WORSE:
            self.roll_back(f"version {self.plan.version} is worse: {shown}", now_us)
        elif status.state == SHADOW and pairs >= gate.shadow_pairs:
            status.canary_from = pairs
            self._enter(CANARY, f"the shadow has shown nothing against it: {shown}")
            for host in trying:
                if host.generation:
                    self._move(host, Stage.WAITING)
        elif (
            status.state == CANARY and verdict is Verdict.NOT_WORSE and pairs >= status.canary_from + gate.shadow_pairs
        ):
            self._promote(shown)
        elif not trying:
            self._enter(PAUSED, "no host is left to try the version on", resumes=status.state)
        elif pairs >= status.pairs_limit:
            self._enter(PAUSED, f"{pairs} pairs have shown neither: {shown}", resumes=status.state)
        elif gate.max_time_us and now_us - status.trial_since_us >= gate.max_time_us:
            self._enter(PAUSED, f"the time of the trial has shown neither: {shown}", resumes=status.state)
        else:
            for host in trying:
                if host.stage is Stage.WAITING and is_online(host.node):
                    self._order(host, Stage.TRYING, Order(host.node, host.base_version, self._trial(gate)), now_us)

    def _promote(self, shown: str) -> None:
        self._enter(ROLLING, f"version {self.plan.version} passed its trial: {shown}")
        self.status.wave, self.status.wave_end_us = 1, 0
        for host in self.hosts.values():
            if self._is_on_trial(host):
                self._move(host, Stage.WAITING)

    def _roll(self, now_us: int, is_online: IsOnline) -> None:
        status, strategy = self.status, self.plan.strategy
        self._switch(now_us, is_online, status.wave)
        if self._is_early(now_us):
            return
        found = figures(self, is_online)
        for wave in range(1, status.wave + 1):
            failed, counting = found.tried.get(wave, [0, 0])
            if failed > strategy.max_failed_share * counting:
                bad = next(host for host in self.hosts.values() if host.wave == wave and host.stage is Stage.FAILED)
                self.roll_back(
                    f"{failed} of {counting} hosts of wave {wave} failed, such as {bad.node}: {bad.message}", now_us
                )
                return
        if any(self._holds_up(host, status.wave, is_online) for host in self.hosts.values()):
            if status.message == self._waits():
                self._say(f"wave {status.wave} of {self.plan.waves}")
            return
        last = status.wave >= self.plan.waves
        mine = [host for host in self.hosts.values() if not host.taken_by and (last or host.wave == status.wave)]
        if not any(host.stage is Stage.SERVING for host in mine):
            if any(host.stage is Stage.WAITING for host in mine):
                self._say(self._waits())
                return
            if last:
                self.roll_back(f"no host serves version {self.plan.version}", now_us)
                return
        if last:
            self._enter(DONE, self._served(is_online))
        elif not status.wave_end_us and strategy.pause_us:
            status.wave_end_us = now_us
            self.touched = True
        elif now_us - status.wave_end_us >= strategy.pause_us or not strategy.pause_us:
            status.wave, status.wave_end_us = status.wave + 1, 0
            self._enter(ROLLING, f"wave {status.wave} of {self.plan.waves}")

    def _switch(self, now_us: int, is_online: IsOnline, waves: int) -> None:
        """Tells hosts of these waves that are connected to switch, as many at once as may be."""
        told, under_way, waiting = [], 0, []
        for host in self.hosts.values():
            if host.stage is Stage.SWITCHING and not host.taken_by:
                told.append(host)
                # In a wave one that went away still counts; of those that come after the end it must not stop the others.
                under_way += self.status.state == ROLLING or is_online(host.node)
            elif host.stage is Stage.WAITING and host.wave <= waves and not host.taken_by and is_online(host.node):
                waiting.append(host)
        self._time_out(told, now_us, "does not serve the version")
        for host in waiting[: max(0, self.plan.strategy.max_parallel - under_way)]:
            self._order(host, Stage.SWITCHING, Order(host.node, self.plan.version), now_us)

    def _return(self, now_us: int, is_online: IsOnline) -> None:
        self._time_out(self.hosts.values(), now_us, "has not said that it is back", Stage.STUCK)
        if self._is_early(now_us) or any(
            host.stage is Stage.RETURNING and not host.taken_by and is_online(host.node) for host in self.hosts.values()
        ):
            return
        found = figures(self, is_online)
        rest = f"; {found.offline} are not connected and go back when they come" if found.offline else ""
        rest += f"; {found.failed} have not gone back" if found.failed else ""
        self._enter(ROLLED_BACK, self.status.message + rest)

    # ---- pieces

    def _time_out(self, hosts: Iterable[HostRow], now_us: int, what: str, stage: Stage = Stage.FAILED) -> None:
        if self._is_early(now_us):
            return
        limit = self.plan.strategy.host_timeout_us
        latest = now_us - limit
        if self.opened_us > latest:
            return
        for host in hosts:
            if host.stage in MOVING and host.since_us <= latest and not host.taken_by:
                self._move(host, stage, _LATE, f"it {what} after {limit // 1_000_000} s")

    def _holds_up(self, host: HostRow, wave: int, is_online: IsOnline) -> bool:
        if host.taken_by or host.wave > wave:
            return False
        return host.stage is Stage.SWITCHING or (host.stage is Stage.WAITING and is_online(host.node))

    def _is_early(self, now_us: int) -> bool:
        """Who is connected says nothing yet: the service began just now."""
        return bool(self.opened_us) and now_us < self.opened_us + GRACE_US

    def _served(self, is_online: IsOnline) -> str:
        found = figures(self, is_online)
        waiting = f"; {found.offline} are not connected and get it when they come" if found.offline else ""
        return f"{found.serving} of {found.total} hosts serve version {self.plan.version}{waiting}"

    def _waits(self) -> str:
        return f"wave {self.status.wave} of {self.plan.waves} waits for hosts: none of it serves, and some are away"

    def _say(self, message: str) -> None:
        """Another sentence; what it says of the alias stays."""
        said_before, mark, alias = self.status.message.partition(_ALIAS)
        if said_before != message:
            self.status.message, self.touched = message + mark + alias, True

    def _is_on_trial(self, host: HostRow) -> bool:
        """It is of the first wave and has a version beside which this one can be tried."""
        return host.wave == 1 and host.base_version not in (0, self.plan.version) and not host.taken_by

    def _trial_id(self, state: State) -> str:
        return f"{self.plan.id}/{'shadow' if state == SHADOW else 'canary'}"

    def _trial(self, gate: Gate) -> serving_pb2.Trial:
        return serving_pb2.Trial(
            trial_id=self._trial_id(self.status.state),
            candidate=self.plan.version,
            answer_share=gate.canary_share if self.status.state == CANARY else 0.0,
            pair_share=gate.pair_share,
            reference=gate.reference,
        )

    def _order(self, host: HostRow, stage: Stage, order: Order, now_us: int) -> None:
        self._move(host, stage)
        self.changed.add(host.node)
        host.to_version, host.since_us = order.version, now_us
        self._orders[host.node] = order

    def _move(self, host: HostRow, stage: Stage, reason: str = "", message: str = "") -> None:
        if (host.stage, host.reason, host.message) != (stage, reason, message):
            host.stage, host.reason, host.message = stage, reason, message
            self.changed.add(host.node)

    def _enter(self, state: State, message: str, resumes: State = NO_STATE) -> None:
        status = self.status
        status.state, status.message, status.resumes = state, message, resumes
        self.touched = True

    def _require_going_on(self) -> None:
        if self.status.state in ENDED:
            raise MeshError(
                Reason.DEPLOYMENT_ENDED,
                f"deployment {self.plan.id} has ended: {fleet_pb2.DeploymentState.Name(self.status.state)}",
                metadata={"deployment": self.plan.id},
            )

    def _gate(self) -> Gate:
        gate = self.plan.strategy.gate
        if gate is None:
            raise AssertionError("a deployment without a gate has no trial")
        return gate
