"""What is tried, who is drawn for it, and what was counted. Pure, but for the version that is tried.

Drawing is by a hash: all frames of a camera, or of a stream that names none, are answered by the same version, so that a stream's
answers do not change between two versions; which frames both versions compute is drawn for each frame by itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from edge.head.frame import FrameRequest
from edge.head.serving.assignments import TrialOrder
from edge.head.ways import Ways

_SPACE = float(1 << 64)


@dataclass(slots=True)
class Counts:
    """Of one trial, since it began in this process; see ``splitmesh.api.serving.v1.TrialCounts``."""

    trial_id: str
    both_right: int = 0
    only_serving_right: int = 0
    only_candidate_right: int = 0
    both_wrong: int = 0
    candidate_failed: int = 0
    serving_failed: int = 0
    not_made: int = 0
    answered_by_serving: int = 0
    answered_by_candidate: int = 0

    def pair(self, right: str, serving: str | None, candidate: str | None) -> None:
        """Both versions' answers to a frame, and what would be right; None: it failed, which is wrong."""
        self.serving_failed += serving is None
        self.candidate_failed += candidate is None
        match serving == right, candidate == right:
            case True, True:
                self.both_right += 1
            case True, False:
                self.only_serving_right += 1
            case False, True:
                self.only_candidate_right += 1
            case _:
                self.both_wrong += 1


@dataclass(frozen=True, slots=True)
class Drawn:
    """What becomes of one frame in a trial."""

    answered_by_candidate: bool
    pair: bool
    """Both versions compute it."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One that goes on."""

    order: TrialOrder
    candidate: Ways
    counts: Counts
    changed: Callable[[], None]
    """To be called when something was counted."""

    def draw(self, request: FrameRequest, number: int) -> Drawn:
        """``number`` tells this frame from all others of this process.

        One that asks for the model's own outputs is answered by the serving version: it was told what that one's are.
        """
        order = self.order
        whose = f"camera/{request.camera_id}" if request.camera_id else f"stream/{request.stream or number}"
        pairs = order.pair_share > 0 and order.reference == "FULL_MODEL"
        return Drawn(
            not request.outputs_needed and drawn(order.answer_share, order.trial_id, whose),
            pairs and drawn(order.pair_share, order.trial_id, whose, request.frame_id, number),
        )


def drawn(share: float, *what: object) -> bool:
    """Whether a hash of this falls into the share; always the same for the same."""
    if share <= 0:
        return False
    digest = hashlib.blake2b("\0".join(map(str, what)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / _SPACE < share
