"""Which version a head goes on with when the registry was set back to a backup and gave its number to another one."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from edge.head.serving.bring import is_number_of
from tests.support.cached import VERSION, numbered


def test_what_is_loaded_goes_on_and_an_operator_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        assert is_number_of(VERSION, replace(VERSION, aliases=(), signatures=(), holders=("audit",)))
        assert not is_number_of(VERSION, numbered(4))
        assert not caplog.records
        assert is_number_of(VERSION, numbered(VERSION.version))
    assert "joints version 3 in the registry is not the one that is loaded" in caplog.text
