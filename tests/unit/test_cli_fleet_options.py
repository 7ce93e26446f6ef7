"""What operators write about hosts, times and sizes, and what is refused."""

from __future__ import annotations

import pytest

from splitmesh.cli.fleet_options import (
    app_share,
    labels_of,
    named_target,
    percents,
    required_target,
    seconds,
    size_bytes,
)
from splitmesh.client.fleet_nodes import AppShare, Target
from splitmesh.errors import MeshError, Reason


def refused(call: object) -> str:
    assert callable(call)
    with pytest.raises(MeshError) as error:
        call()
    assert error.value.reason is Reason.FIELD_INVALID
    return error.value.message


def test_options_name_hosts() -> None:
    target = named_target(["a"], ["A"], ["2"], ["cams"], ["hall=3", "shift=day"])
    assert target == Target(("a",), ("A",), ("2",), ("cams",), {"hall": "3", "shift": "day"})
    assert required_target(named_target(None, None, None, None, None, every=True)) == Target(every=True)


def test_nothing_named_is_no_target_and_every_host_is_said_alone() -> None:
    assert named_target(None, [], None, None, None) is None
    assert "say which hosts" in refused(lambda: required_target(None))
    assert "leave the other ones out" in refused(lambda: required_target(Target(nodes=("a",), every=True)))


@pytest.mark.parametrize("text", ["hall", "=3", "hall="])
def test_a_label_without_key_or_value_is_refused(text: str) -> None:
    assert "key=value" in refused(lambda: labels_of([text]))


def test_a_label_is_taken_away_by_no_value_and_said_once() -> None:
    assert labels_of(["hall=", "a=b=c"], removable=True) == {"hall": "", "a": "b=c"}
    assert "given twice" in refused(lambda: labels_of(["a=1", "a=2"]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("60s", 60), ("5m", 300), ("1.5h", 5400), ("2d", 172_800), ("250ms", 0.25), ("7", 7), ("0s", 0)],
)
def test_times(text: str, expected: float) -> None:
    assert seconds("pause", text) == expected


@pytest.mark.parametrize("text", ["", "soon", "-1s", "5 weeks", "1e9h", "nan", "9999d"])
def test_what_is_no_time_is_refused(text: str) -> None:
    refused(lambda: seconds("pause", text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("512MiB", 512 << 20), ("4GiB", 4 << 30), ("500MB", 500_000_000), ("1.5 GiB", 3 << 29), ("7", 7)],
)
def test_sizes(text: str, expected: int) -> None:
    assert size_bytes("memory", text) == expected


@pytest.mark.parametrize("text", ["", "much", "-1", "5XB", "9999999GiB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    refused(lambda: size_bytes("memory", text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("joints=priority:5,cpu:2,memory:512MiB", AppShare("joints", 5, 2.0, 512 << 20)),
        ("joints=cpu:0.5", AppShare("joints", 0, 0.5, 0)),
        ("joints", AppShare("joints")),
    ],
)
def test_an_application_may_leave_parts_out(text: str, expected: AppShare) -> None:
    assert app_share(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("=cpu:1", "joints=", "joints=speed:1", "joints=cpu", "joints=cpu:fast", "joints=cpu:0", "joints=cpu:-1"),
        *("joints=cpu:nan", "joints=priority:10", "joints=priority:high", "joints=memory:lots", "joints=cpu:1,cpu:2"),
    ],
)
def test_what_is_no_share_is_refused(text: str) -> None:
    refused(lambda: app_share(text))


@pytest.mark.parametrize(
    ("text", "expected"), [("", ()), ("5,25,100", (5, 25, 100)), ("10%, 50%", (10, 50, 100)), ("100", (100,))]
)
def test_waves_end_with_every_host(text: str, expected: tuple[int, ...]) -> None:
    assert percents(text) == expected


@pytest.mark.parametrize("text", ["0,50", "50,25", "5,5,100", "101", "many", "5,,100", "-5"])
def test_waves_that_do_not_grow_are_refused(text: str) -> None:
    refused(lambda: percents(text))
