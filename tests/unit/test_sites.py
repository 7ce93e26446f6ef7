"""What a person may state about a site, and its text in the store."""

from __future__ import annotations

import math

import pytest

from services.router.shares.stated import MAX_APPLICATIONS, Place, Site
from splitmesh.errors import MeshError, Reason

STATED = Site("line-4", 625_000.0, 900.0, (Place("solder-joints", 5.0, 0.1), Place("helmets")))


def test_a_site_survives_its_text() -> None:
    assert Site.from_json(STATED.to_json()) == STATED
    assert Site.from_json(Site("x").to_json()) == Site("x")


def test_what_is_not_stated_is_no_limit_and_weighs_one() -> None:
    assert (Site("x").limits.bytes_per_s, Site("x").limits.cloud_ms_per_s) == (math.inf, math.inf)
    assert (STATED.limits.bytes_per_s, STATED.limits.cloud_ms_per_s) == (625_000.0, 900.0)
    assert STATED.place("solder-joints") == Place("solder-joints", 5.0, 0.1)
    assert STATED.place("faces") == Place("faces", 1.0, 0.0)


DAMAGED = [
    "",
    "[]",
    "{}",
    '{"name": "x"}',
    '{"name": "x", "applications": [{"weight": 1}]}',
    '{"name": "?", "applications": []}',
    '{"name": "x", "bytes_per_s": "fast", "applications": []}',
]


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_text_is_said_to_be_one(text: str) -> None:
    with pytest.raises(MeshError) as damaged:
        Site.from_json(text)
    assert damaged.value.reason is Reason.SERVICE_UNAVAILABLE


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("site", {"name": ""}),
        ("site", {"name": "-x"}),
        ("site", {"name": "x" * 65}),
        ("bytes_per_s", {"bytes_per_s": -1.0}),
        ("bytes_per_s", {"bytes_per_s": math.nan}),
        ("cloud_ms_per_s", {"cloud_ms_per_s": math.inf}),
        ("applications", {"applications": (Place("a"), Place("a"))}),
        ("applications", {"applications": tuple(Place(f"a{number}") for number in range(MAX_APPLICATIONS + 1))}),
    ],
)
def test_impossible_budgets_are_refused(field: str, fields: dict[str, object]) -> None:
    with pytest.raises(MeshError) as refused:
        Site(**({"name": "x"} | fields))  # type: ignore[arg-type]
    assert [name for name, _ in refused.value.fields] == [field]


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("applications.application", {"application": "No Model"}),
        ("applications.weight", {"weight": 0.0}),
        ("applications.weight", {"weight": math.nan}),
        ("applications.weight", {"weight": 1e7}),
        ("applications.min_share", {"min_share": 1.1}),
        ("applications.min_share", {"min_share": math.nan}),
    ],
)
def test_impossible_places_are_refused(field: str, fields: dict[str, object]) -> None:
    with pytest.raises(MeshError) as refused:
        Place(**({"application": "a"} | fields))  # type: ignore[arg-type]
    assert [name for name, _ in refused.value.fields] == [field]
