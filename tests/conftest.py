"""What every test may use: a mesh in this process or in processes of its own, by ``--mesh=inprocess|processes``."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--mesh",
        choices=("inprocess", "processes"),
        default="inprocess",
        help="where services of integration tests run; tests that kill a service always use processes",
    )
