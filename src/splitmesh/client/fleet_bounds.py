"""How much one message of an agent may hold. Agents keep to it, the fleet refuses more: one number for both."""

from __future__ import annotations

MAX_HELD = 10_000
"""Tasks that a hello names as held."""
MAX_STATES = 1_000
"""States of what heads serve in a hello or an update, and models in an update that are served no more."""
