"""What every test may use: a mesh in this process or in processes of its own, by ``--mesh=inprocess|processes``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from splitmesh.kernel.loops import ForgivingLoop


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--mesh",
        choices=("inprocess", "processes"),
        default="inprocess",
        help="where services of integration tests run; tests that kill a service always use processes",
    )


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Every test has a loop of its own: gRPC tells of calls that one test cancelled in the loop of the next."""
    return {"forgiving": ForgivingLoop}


@pytest.fixture(scope="session", autouse=True)
def state_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What services and commands keep where nobody told them a folder, keyrings above all, is not the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        # Measuring what computes a head takes seconds at its first load; who tests that asks for it.
        patch.setenv("SPLITMESH_BACKENDS", "onnxruntime")
        yield


@pytest.fixture(scope="session")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry's folder with the models of ``tests.support.worlds``; copy it, do not write to it."""
    from tests.support.worlds import register_models

    folder = tmp_path_factory.mktemp("registered") / "registry"
    asyncio.run(register_models(folder))
    return folder


@pytest.fixture(autouse=True)
def nothing_fails_unseen() -> Iterator[None]:
    """Fails a test in which a task died with an exception that nobody looked at: asyncio only logs that."""
    seen: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(self.format(record))

    listener, logger = Listener(logging.ERROR), logging.getLogger("asyncio")
    logger.addHandler(listener)
    yield
    logger.removeHandler(listener)
    assert not seen, "\n".join(seen)
