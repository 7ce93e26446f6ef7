"""How ``splitmesh infer`` tells why a frame was answered where it was."""

from __future__ import annotations

from dataclasses import replace

from splitmesh.cli.infer import described
from splitmesh.client import Routing, Why

HARD = Routing(Why.UNSURE, "max_probability", 0.731, 0.9, 0.27, policy_revision=3)


def test_one_line_says_what_was_compared_and_by_which_policy() -> None:
    assert described(HARD) == "UNSURE: max_probability 0.731 against 0.900, worth 0.270, policy 3"


def test_what_is_undefined_and_a_policy_that_never_came_are_said_in_words() -> None:
    unknown = replace(HARD, why=Why.UNDEFINED, ease=None, policy_revision=0)
    assert described(unknown) == "UNDEFINED: max_probability undefined against 0.900, worth 0.270, no policy yet"


def test_a_refusal_and_an_audit_are_told() -> None:
    assert described(replace(HARD, refused="20000 bytes/s are spent")).endswith("not sent: 20000 bytes/s are spent")
    assert described(replace(HARD, audited=True)).endswith(", audited")
