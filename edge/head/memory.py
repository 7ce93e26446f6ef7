"""How much memory the versions of this host's models may take: room is taken before one is loaded, and given back when it is
unloaded.

What is counted is the estimate that loading gives, and before that the sizes of the files, which it never takes less than. A
version counts until its last frame is answered, so that a switch needs room for both. Limits are the host policy's; what the
host has left is looked at where a head is opened. Knows names and bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from edge.head.serving.host_policy import HostPolicy
from splitmesh.errors import MeshError, Reason

RETRY_S = 60.0


class Room:
    """What one version takes; nothing once it was given back."""

    def __init__(self, memory: HostMemory, model: str) -> None:
        self._memory = memory
        self._model = model
        self._bytes = 0
        self._is_open = True

    def need(self, size_bytes: int) -> None:
        """It takes so much from now on. MeshError HOST_TOO_SMALL: that is too much, and it takes what it took."""
        if self._is_open:
            self._memory.require(self._model, size_bytes - self._bytes)
            self._memory.used[self._model] += size_bytes - self._bytes
            self._bytes = size_bytes

    def give_back(self) -> None:
        """It takes nothing any more."""
        self._memory.used[self._model] -= self._bytes
        self._bytes, self._is_open = 0, False


class HostMemory:
    """Of all models of this head. ``policy`` gives the limits by now."""

    def __init__(self, policy: Callable[[], HostPolicy] = HostPolicy) -> None:
        self._policy = policy
        self.used: Counter[str] = Counter()
        """By model, bytes."""

    def room(self, model: str) -> Room:
        """For one more version of a model; it takes nothing yet."""
        return Room(self, model)

    def require(self, model: str, more_bytes: int) -> None:
        """Raise MeshError HOST_TOO_SMALL where the model may not take so much more."""
        if more_bytes <= 0:
            return
        policy = self._policy()
        for whose, most, used in (
            (f"the versions of {model}", policy.of(model).memory_bytes, self.used[model]),
            ("all versions of this host", policy.memory_bytes, self.used.total()),
        ):
            if most and used + more_bytes > most:
                raise MeshError(
                    Reason.HOST_TOO_SMALL,
                    f"{whose} may take {_mib(most)} together, and take {_mib(used)}: there is no room for {_mib(more_bytes)} "
                    "more; a version is unloaded only when the one after it is loaded",
                    metadata={"needed_bytes": str(more_bytes), "limit_bytes": str(most), "used_bytes": str(used)},
                    retry_after_s=RETRY_S,
                )


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.1f} MiB"
