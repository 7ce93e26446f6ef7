"""Other servers: which there are, how each is installed, started and stopped."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
from numpy.typing import NDArray

from benchmarks.serving.asking import asked_once, oip_call, same, upload_call
from benchmarks.serving.cost import tree_pids
from benchmarks.serving.head import Served
from benchmarks.serving.http1 import HttpCall
from benchmarks.serving.http2 import GrpcCall

ROOT = Path(__file__).resolve().parents[2]
VENVS = ROOT / "build" / "peers"
SCRIPTS = ROOT / "benchmarks" / "peers"
INSTALL_TIMEOUT_S = 600.0
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 10.0
RUNTIME = "onnxruntime==1.32.0"

Call = GrpcCall | HttpCall
Asking = Callable[[NDArray[np.float32]], Call]


@dataclass(frozen=True, slots=True)
class Rival:
    """One server."""

    name: str
    script: str
    requirements: tuple[str, ...]
    protocol: str
    call: Asking

    @property
    def python(self) -> Path:
        """Of its virtual environment."""
        return VENVS / self.script / "venv" / "bin" / "python"

    @property
    def installed(self) -> bool:
        """The install came to its end."""
        return (VENVS / self.script / "installed").exists()


def _oip(picture: NDArray[np.float32]) -> GrpcCall:
    return oip_call("net", picture)


RIVALS = (
    Rival("KServe 0.21", "kserve", ("kserve==0.21.0",), "OIP unary", _oip),
    Rival("pytriton 0.7", "pytriton", ("nvidia-pytriton==0.7.0",), "OIP unary", _oip),
    Rival("BentoML 1.4", "bento", ("bentoml==1.4.39",), "HTTP", lambda picture: upload_call("/predict", picture)),
    Rival(
        "LitServe 0.2",
        "litserve",
        ("litserve==0.2.19", "python-multipart==0.0.20"),
        "HTTP",
        lambda picture: upload_call("/predict", picture),
    ),
    Rival("Ray Serve 2.60", "ray_serve", ("ray[serve]==2.60.0",), "OIP unary", _oip),
    # Its worker processes need an older uvloop.
    Rival("MLServer 1.7", "mlserver", ("mlserver==1.7.1", "uvloop<0.22"), "OIP unary", _oip),
)


class SkippedError(Exception):
    """This server cannot be measured here; says why."""


def install(rival: Rival) -> None:
    """Into a virtual environment of its own, once. SkippedError when that fails or takes too long."""
    if rival.installed:
        return
    folder = VENVS / rival.script
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    log = folder / "install.log"
    pip = [str(rival.python), "-m", "pip", "install", "--disable-pip-version-check", *rival.requirements, RUNTIME]
    with log.open("wb") as file:
        for command in ([shutil.which("python3.11") or "python3", "-m", "venv", str(folder / "venv")], pip):
            try:
                subprocess.run(command, check=True, timeout=INSTALL_TIMEOUT_S, stdout=file, stderr=file)
            except subprocess.TimeoutExpired as error:
                raise SkippedError(f"its install took longer than {INSTALL_TIMEOUT_S:.0f} s") from error
            except subprocess.CalledProcessError as error:
                raise SkippedError(f"cannot be installed, see {log.relative_to(ROOT)}") from error
    (folder / "installed").write_text("\n".join(rival.requirements) + "\n")


@asynccontextmanager
async def serving(
    rival: Rival, model: Path, picture: NDArray[np.float32], scores: NDArray[np.float32]
) -> AsyncIterator[Served]:
    """The rival with the model, once it gives the right scores. SkippedError when it does not."""
    port = _free_port()
    process = _start(rival, model, port)
    try:
        address = f"127.0.0.1:{port}"
        await asyncio.to_thread(_wait_right, process, address, rival, picture, scores)
        yield Served(address, process.pid)
    finally:
        await asyncio.to_thread(_stop, process)


def _start(rival: Rival, model: Path, port: int) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "MODEL": str(model)}
    with (VENVS / rival.script / "server.log").open("wb") as log:
        return subprocess.Popen(
            [rival.python, "-P", SCRIPTS / f"{rival.script}.py", model, str(port)],
            cwd=model.parent,
            env=environment,
            stdout=log,
            stderr=log,
        )


def _wait_right(
    process: subprocess.Popen[bytes],
    address: str,
    rival: Rival,
    picture: NDArray[np.float32],
    scores: NDArray[np.float32],
) -> None:
    until, problem = time.monotonic() + START_TIMEOUT_S, "nothing"
    log = f"see build/peers/{rival.script}/server.log"
    while time.monotonic() < until:
        if process.poll() is not None:
            raise SkippedError(f"ended with {process.returncode}, {log}")
        try:
            found = asked_once(address, rival.call(picture))
        except (OSError, grpc.RpcError) as error:
            problem = error.details() if isinstance(error, grpc.Call) else str(error)
            time.sleep(0.3)
            continue
        if not same(found, scores):
            raise SkippedError("gives other scores than the runtime")
        return
    raise SkippedError(f"does not answer after {START_TIMEOUT_S:.0f} s ({problem}), {log}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Everything that it started too."""
    below = tree_pids(process.pid)
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_TIMEOUT_S)
    for pid in below:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def _free_port() -> int:
    """One with the two behind it, which some servers take for HTTP and metrics."""
    with socket.socket() as first:
        first.bind(("127.0.0.1", 0))
        return int(first.getsockname()[1])
