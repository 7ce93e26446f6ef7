"""The fleet's README names its settings as they are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from services.fleet.config import FleetSettings

README = Path(__file__).parents[2] / "services" / "fleet" / "README.md"
NAMED = re.findall(r"`SPLITMESH_([A-Z_]+)` \(([0-9][0-9,.]*)\)", README.read_text(encoding="utf-8"))


def test_settings_with_their_defaults_are_named() -> None:
    assert len(NAMED) >= 8


@pytest.mark.parametrize(("name", "default"), NAMED, ids=[name for name, _ in NAMED])
def test_a_default_is_the_one_that_counts(name: str, default: str) -> None:
    assert FleetSettings.model_fields[name.lower()].default == float(default.replace(",", ""))
