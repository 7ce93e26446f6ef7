"""Which tail gets the next frame, and which gets none for a while. Pure: times and chance come from the caller.

Of two tails drawn at random the better one is taken (Mitzenmacher, "The power of two choices in randomized load balancing",
2001). Better is where a frame would take less: a moving average of latency that believes a rise at once and a fall slowly, as
in Finagle's and linkerd's Peak EWMA (com.twitter.finagle.loadbalancer.PeakEwma), times the frames there, and the tail's own
word on its queue. A frame that is still out counts as much as an answer: a tail that has been silent for long is no fast one.

A tail that is far worse than the others is ejected, in Envoy's words (outlier detection): for failures in a row, for its share
of failures, and here for its pace too (its latency, shared among the frames that were there together), each beside what the
others do at the same time. It is away for a time that doubles, and comes back with one frame at a time until a few went well.
At most half of the tails are ejected at once.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from random import Random
from statistics import median

PEAK_MS = 2000.0
"""A peak's weight falls to 1/e in this time. Finagle takes 10 s; frames come more often than requests."""
IDLE_MS = 6000.0
"""So does what is known of a tail that is sent nothing, so that one that was slow is asked again some day."""
RECENT = 9
"""Latencies whose median says how fast a tail is; a single late frame ejects nobody."""
FEWEST = 3
"""Latencies that are enough for that, and failures in a row that eject (Envoy waits for five). Until it has given so many, a
tail gets one frame at a time before any other does, and the least counts: the first answers also pay for what they warm up."""
SLOWER_MS = 25.0
"""A tail is no outlier by less than this: batches, and pauses of a busy host, are of this size."""
SHARE_MS = 10_000.0
"""Failures and answers count for 1/e after so long."""
SHARE_FRAMES = 10.0
"""So many frames make a share of failures."""
SHARE_ABOVE = 0.3
"""A share that much above the others' ejects."""
EJECTED_MS = (1000.0, 30_000.0)
"""First and longest time away."""
WELL_MS = 10_000.0
"""So long without an ejection takes one doubling back."""
PROBES = 3
"""Frames that have to go well before a tail that was ejected counts as the others do."""
UNKNOWN = 1e12
"""Score of a tail that has not given that many, while it has a frame."""


class Conduct(Enum):
    """How a tail is treated."""

    OPEN = 1
    EJECTED = 2
    PROBED = 3
    """Back from an ejection, with one frame at a time."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What an operator decides about several tails."""

    by_latency: bool = True
    """Frames go where they take least; else to the tail with the fewest frames unanswered."""
    eject_factor: float = 4.0
    """Times the others' latency that ejects a tail; 0: none is ejected, whatever it does."""
    hedge_budget: float = 0.05
    """Late frames sent a second time, as a share of all; 0: none."""


class Standing:
    """What is known of one tail. All times in milliseconds on one monotonic clock; frames by any number of the caller's."""

    def __init__(self) -> None:
        self.conduct = Conduct.OPEN
        self.answered_frames = 0
        self.failed_frames = 0
        self.hedged_frames = 0
        """Sent a second time because this tail was late."""
        self._out: dict[int, _Sent] = {}  # the oldest first
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._paces: deque[float] = deque(maxlen=RECENT)
        self._peak_ms: float | None = None
        self._peak_at = 0.0
        self._backlog_ms = 0.0
        self._backlog_at = 0.0
        self._held_until = -math.inf
        self._streak = 0
        self._beaten = 0
        self._share = _Share()
        self._ejections = 0
        self._away_until = -math.inf
        self._probes_left = 0

    # what happens

    def connected(self) -> None:
        """A new life of the stream: how fast the tail was before says little. One that failed frames is probed first."""
        if self._streak and self.conduct is Conduct.OPEN:
            self._probe()
        self._start_anew()

    def sent(self, frame: int, now_ms: float) -> None:
        """A frame is on its way."""
        self._out[frame] = _Sent(now_ms, len(self._out) + 1)

    def answered(self, frame: int, now_ms: float, backlog_ms: float) -> float:
        """The answer came; returns what it took."""
        sent = self._out.pop(frame)
        took_ms = now_ms - sent.at_ms
        self.answered_frames += 1
        self._saw(took_ms, sent.together, now_ms)
        self._said(backlog_ms, now_ms)
        self._streak = self._beaten = 0
        self._share.add(0.0, now_ms)
        if self.conduct is Conduct.PROBED:
            self._probes_left -= 1
            self.conduct = Conduct.PROBED if self._probes_left else Conduct.OPEN
        return took_ms

    def failed(self, frame: int, now_ms: float) -> None:
        """The tail, or the stream to it, failed the frame."""
        del self._out[frame]
        self.failed_frames += 1
        self._streak += 1
        self._share.add(1.0, now_ms)

    def refused(self, frame: int, now_ms: float, retry_after_s: float, backlog_ms: float) -> None:
        """The tail takes no frame now, and says for how long. It is no worse for that."""
        del self._out[frame]
        self.failed_frames += 1
        self._held_until = max(self._held_until, now_ms + retry_after_s * 1e3)
        self._said(backlog_ms, now_ms)

    def faulted(self, frame: int, backlog_ms: float, now_ms: float) -> None:
        """The tail found something wrong with the frame. It is well if others find as much wrong with theirs."""
        del self._out[frame]
        self.failed_frames += 1
        self._streak = 0
        self._share.add(1.0, now_ms)
        self._said(backlog_ms, now_ms)

    def given_up(self, frame: int, now_ms: float) -> None:
        """Nobody waits any more: it would have taken longer than this."""
        sent = self._out.pop(frame)
        age_ms = now_ms - sent.at_ms
        if self._recent and age_ms > median(self._recent):
            self._saw(age_ms, sent.together, now_ms)

    def beaten(self, frame: int, now_ms: float) -> None:
        """Another tail answered first, though it was asked later."""
        self._beaten += 1
        self.given_up(frame, now_ms)

    def expired(self, frame: int, now_ms: float) -> None:
        """No answer came before the frame's deadline; one that the tail could hardly have kept is not its failure."""
        if not self._recent or now_ms - self._out[frame].at_ms >= 2 * median(self._recent):
            self._streak += 1
            self._share.add(1.0, now_ms)
        self.failed_frames += 1
        self.given_up(frame, now_ms)

    def eject(self, now_ms: float) -> float:
        """Keep frames away; returns for how many milliseconds."""
        well = int(max(0.0, now_ms - self._away_until) / WELL_MS) if self._ejections else 0
        self._ejections = max(0, self._ejections - well)
        away_ms = min(EJECTED_MS[0] * 2.0**self._ejections, EJECTED_MS[1])
        self._ejections += 1
        self._away_until = now_ms + away_ms
        self.conduct = Conduct.EJECTED
        return away_ms

    def come_back(self, now_ms: float) -> None:
        """Let it try again when its time is over: nothing of before counts."""
        if self.conduct is Conduct.EJECTED and now_ms >= self._away_until:
            self._probe()
            self._start_anew()

    # what it looks like

    @property
    def in_flight(self) -> int:
        """Frames without an answer."""
        return len(self._out)

    @property
    def well(self) -> bool:
        """It is treated as the others are."""
        return self.conduct is Conduct.OPEN

    def held_ms(self, now_ms: float) -> float:
        """How long it still wants no frame."""
        return max(0.0, self._held_until - now_ms)

    def backlog_ms(self, now_ms: float) -> float:
        """Its own word on its queue, less the time since."""
        return max(0.0, self._backlog_ms - (now_ms - self._backlog_at))

    def latency_ms(self, now_ms: float) -> float:
        """What a frame takes: the peaks, forgotten with time, or the oldest frame that is out; 0: not known."""
        if self._peak_ms is None:
            return 0.0
        idle = math.exp((self._peak_at - now_ms) / IDLE_MS)
        return max(self._peak_ms * idle, self.oldest_ms(now_ms))

    def score(self, now_ms: float) -> float:
        """What one more frame would take; less is better."""
        if len(self._recent) < FEWEST:
            return UNKNOWN + self.in_flight if self._out else 0.0
        return self.latency_ms(now_ms) * (self.in_flight + 1) + self.backlog_ms(now_ms)

    def oldest_ms(self, now_ms: float) -> float:
        """Age of the frame that is out for longest."""
        return max(0.0, now_ms - next(iter(self._out.values())).at_ms) if self._out else 0.0

    def pace_ms(self, now_ms: float) -> float | None:
        """What each of the frames that were there together took: the median of recent ones, or the one that is out for longest
        where that is more; None: not known. A tail is not slow for having been sent much at once."""
        out = next((sent.pace_ms(now_ms) for sent in self._out.values()), 0.0)
        return max(median(self._paces), out) if self._paces else None

    @property
    def streak(self) -> int:
        """Failures in a row, or answers that another tail gave first."""
        return max(self._streak, self._beaten)

    def failing(self, usual: float) -> bool:
        """So long a streak beside the others' that it must be the tail."""
        return self.streak - usual >= self._fewest

    def failure_share(self, now_ms: float) -> float | None:
        """Of recent frames; None: too few."""
        return self._share.value(now_ms)

    def slower_than(self, limit_ms: float, now_ms: float) -> bool:
        """Whether answers, or frames that are out, are of this pace; one is enough of a tail that is probed."""
        if len(self._paces) >= self._fewest and median(self._paces) > limit_ms:
            return True
        return sum(sent.pace_ms(now_ms) > limit_ms for sent in self._out.values()) >= self._fewest

    @property
    def _fewest(self) -> int:
        return 1 if self.conduct is Conduct.PROBED else FEWEST

    def _probe(self) -> None:
        self.conduct, self._probes_left = Conduct.PROBED, PROBES
        self._streak = self._beaten = 0
        self._share = _Share()

    def _start_anew(self) -> None:
        self._recent.clear()
        self._paces.clear()
        self._peak_ms = None
        self._held_until = -math.inf

    def _saw(self, took_ms: float, together: int, now_ms: float) -> None:
        self._recent.append(took_ms)
        self._paces.append(took_ms / together)
        if len(self._recent) <= FEWEST:
            self._peak_ms = min(self._recent)
        elif self._peak_ms is None or took_ms > self._peak_ms:
            self._peak_ms = took_ms
        else:
            kept = math.exp((self._peak_at - now_ms) / PEAK_MS)
            self._peak_ms = kept * self._peak_ms + (1 - kept) * took_ms
        self._peak_at = now_ms

    def _said(self, backlog_ms: float, now_ms: float) -> None:
        self._backlog_ms, self._backlog_at = backlog_ms, now_ms


class Balance:
    """Chooses among tails and ejects outliers."""

    def __init__(self, policy: Policy, random: Random) -> None:
        self._policy = policy
        self._random = random

    def choose(self, tails: Sequence[Standing], now_ms: float) -> int | None:
        """The place of the tail to send to, of those that could take a frame; None: each of them wants none now.

        An ejected tail gets frames only when there is no other.
        """
        willing = [index for index, tail in enumerate(tails) if not tail.held_ms(now_ms)]
        good = [index for index in willing if _takes_frames(tails[index])]
        among = good or willing
        if not among:
            return None
        if self._policy.by_latency:
            drawn = self._random.sample(among, min(2, len(among)))
            return min(drawn, key=lambda index: tails[index].score(now_ms))
        return min(among, key=lambda index: (tails[index].in_flight, self._random.random()))

    def judge(self, tails: Sequence[Standing], now_ms: float) -> list[tuple[Standing, str, float]]:
        """Eject and let back; ``tails`` are those that are connected. Who was ejected now, why, and for how many ms."""
        for tail in tails:
            tail.come_back(now_ms)
        if not self._policy.eject_factor:
            return []
        away = sum(tail.conduct is Conduct.EJECTED for tail in tails)
        ejected = []
        for tail in sorted(tails, key=lambda tail: -tail.latency_ms(now_ms)):
            if away >= len(tails) // 2:
                break
            others = [other for other in tails if other is not tail and other.conduct is Conduct.OPEN]
            if tail.conduct is not Conduct.EJECTED and others and (why := self._outlier(tail, others, now_ms)):
                ejected.append((tail, why, tail.eject(now_ms)))
                away += 1
        return ejected

    def _outlier(self, tail: Standing, others: Sequence[Standing], now_ms: float) -> str:
        """What is wrong with a tail beside the others; empty when nothing is."""
        if tail.failing(median(other.streak for other in others)):
            return "failures in a row"
        share = tail.failure_share(now_ms)
        if share is not None:
            usual = _median(other.failure_share(now_ms) or 0.0 for other in others)
            if share > (usual or 0.0) + SHARE_ABOVE:
                return f"{share:.0%} of its frames failed"
        # A link that stands still makes the others late as well, and nobody an outlier.
        usual_ms = _median(other.pace_ms(now_ms) for other in others)
        if usual_ms is None:
            return ""
        limit_ms = max(self._policy.eject_factor * usual_ms, usual_ms + SLOWER_MS)
        return f"slower than {limit_ms:.0f} ms" if tail.slower_than(limit_ms, now_ms) else ""


@dataclass(frozen=True, slots=True)
class _Sent:
    """A frame on its way."""

    at_ms: float
    together: int
    """Frames there, this one among them, when it was sent."""

    def pace_ms(self, now_ms: float) -> float:
        return (now_ms - self.at_ms) / self.together


@dataclass(slots=True)
class _Share:
    """A share of failures in which what is old counts for less."""

    bad: float = 0.0
    all: float = 0.0
    at_ms: float = 0.0

    def add(self, failed: float, now_ms: float) -> None:
        kept = math.exp((self.at_ms - now_ms) / SHARE_MS)
        self.bad, self.all, self.at_ms = kept * self.bad + failed, kept * self.all + 1, now_ms

    def value(self, now_ms: float) -> float | None:
        return self.bad / self.all if self.all * math.exp((self.at_ms - now_ms) / SHARE_MS) >= SHARE_FRAMES else None


def _takes_frames(tail: Standing) -> bool:
    return tail.conduct is Conduct.OPEN or (tail.conduct is Conduct.PROBED and not tail.in_flight)


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
