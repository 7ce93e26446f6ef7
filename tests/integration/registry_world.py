"""What the registry's tests share: small models, a registry in this process or in one of its own, a small disk."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from services.registry.app import build
from services.registry.config import RegistrySettings
from splitmesh.api.registry.v1 import registry_pb2 as pb
from splitmesh.api.registry.v1.registry_pb2_grpc import RegistryServiceStub
from splitmesh.client.registry import RegistryClient
from splitmesh.errors import MeshError
from splitmesh.kernel.channels import Channels, mesh_errors
from splitmesh.kernel.discovery_static import StaticDiscovery
from splitmesh.kernel.lifecycle import Host
from splitmesh.model.manifest import Manifest, SegmentInfo, TensorInfo

ROOT = Path(__file__).parents[2]
WAIT_S = 20.0


def relu_model(note: str = "") -> bytes:
    """A whole model of one operator; another ``note`` makes other bytes."""
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "relu", tensors[:1], tensors[1:], doc_string=note
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()


def external_model() -> bytes:
    """A model whose weight claims to be in another file."""
    model = onnx.load_model_from_string(relu_model())
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4], [0.0] * 4)
    weight.ClearField("float_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="/etc/passwd")
    model.graph.initializer.append(weight)
    return model.SerializeToString()


def manifest(artifact: str = "model.onnx") -> bytes:
    """The manifest of :func:`relu_model`."""
    tensor = {name: TensorInfo(name=name, dtype="float32", shape=(-1, 4)) for name in "xy"}
    whole = SegmentInfo(artifact=artifact, inputs=(tensor["x"],), outputs=(tensor["y"],))
    return Manifest(task="raw", whole=whole).to_json().encode()


def parts(note: str = "") -> dict[str, bytes | Path]:
    """A complete version."""
    return {"model.onnx": relu_model(note), "manifest.json": manifest()}


def digest(content: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


@dataclass
class World:
    """A running registry and ways to reach it."""

    data_dir: Path
    address: str
    channels: Channels
    client: RegistryClient
    stub: RegistryServiceStub
    stop: Callable[[], Awaitable[None]]

    @classmethod
    def at(cls, data_dir: Path, address: str, channels: Channels, host: Host | None = None) -> World:
        """The registry at an address, which may be another process."""

        async def stop() -> None:
            if host is not None:
                await host.stop()

        return cls(
            data_dir, address, channels, RegistryClient(channels), RegistryServiceStub(channels.at(address)), stop
        )

    async def push(
        self, pieces: Iterable[bytes], *, sha256: str, size_bytes: int, offset: int = 0
    ) -> pb.PushArtifactResponse:
        """One raw upload stream, ended after the pieces."""
        start = pb.PushStart(sha256=sha256, size_bytes=size_bytes, offset=offset)
        messages = [pb.PushArtifactRequest(start=start), *(pb.PushArtifactRequest(data=piece) for piece in pieces)]
        async with mesh_errors():
            answer: pb.PushArtifactResponse = await self.stub.PushArtifact(iter(messages), timeout=WAIT_S)
        return answer

    async def offset(self, content: bytes) -> int:
        """What GetUpload says."""
        return int((await self.stub.GetUpload(pb.GetUploadRequest(sha256=digest(content)), timeout=WAIT_S)).offset)

    async def begin(self, content: bytes) -> Any:
        """An open, accepted upload stream, to be written by hand."""
        call: Any = self.stub.PushArtifact(timeout=WAIT_S)
        await call.write(
            pb.PushArtifactRequest(start=pb.PushStart(sha256=digest(content), size_bytes=len(content), offset=0))
        )
        await call.initial_metadata()
        return call

    def visible(self) -> dict[str, int]:
        """Whole artefacts on disk, by digest, with their sizes; each is really whole."""
        found = [path for path in (self.data_dir / "blobs").rglob("*") if path.is_file()]
        assert all(digest(path.read_bytes()) == path.name for path in found)
        return {path.name: path.stat().st_size for path in found}

    def unfinished(self) -> dict[str, int]:
        """Unfinished uploads on disk with their sizes."""
        return {path.name: path.stat().st_size for path in (self.data_dir / "uploads").iterdir()}

    async def require_healthy(self) -> None:
        """A whole round trip works."""
        note = os.urandom(8).hex()
        version = await self.client.create_version("health", parts(note), created_by="test")
        assert await self.client.fetch(version, "model.onnx") == relu_model(note)


@contextmanager
def local_stores() -> Iterator[dict[str, Any]]:
    """SQLite and a folder: what a registry has unless told otherwise."""
    yield {}


@contextmanager
def remote_stores() -> Iterator[dict[str, Any]]:
    """A real PostgreSQL, and a bucket of moto's S3 server; skips the test where PostgreSQL is missing."""
    from tests.support.postgres import fresh_database  # imported here: others use this module without them
    from tests.support.s3 import serving_s3

    with fresh_database() as url, serving_s3() as s3:
        bucket = s3.bucket()
        yield {"database_url": url, "contents_url": bucket.url, "contents_options": bucket.options_json}


STORES = {"sqlite-folder": local_stores, "postgresql-s3": remote_stores}
"""Settings of a registry by what it keeps things in; for tests that hold on all."""


def settings_for(data_dir: Path, **changes: Any) -> RegistrySettings:
    """Settings for a test: nothing is kept free on the disk, shutdown is quick."""
    return RegistrySettings(**{"data_dir": data_dir, "min_free_bytes": 0, "drain_s": 1.0, **changes})


@asynccontextmanager
async def running(data_dir: Path, **changes: Any) -> AsyncIterator[World]:
    """A registry in this process."""
    async with Host("registry", settings_for(data_dir, **changes), build) as host, reaching(host.address) as channels:
        yield World.at(data_dir, host.address, channels, host)


@asynccontextmanager
async def reaching(address: str) -> AsyncIterator[Channels]:
    """Channels to a registry at an address."""
    channels = Channels(StaticDiscovery({"registry": [address]}))
    try:
        yield channels
    finally:
        await channels.close()


class Process:
    """``python -m services.registry`` as a real process; ``prelude`` is code that runs in it first."""

    def __init__(self, data_dir: Path, *, prelude: str = "", **settings: object) -> None:
        values = {"data_dir": data_dir, "min_free_bytes": 0, **settings}
        environment = {f"SPLITMESH_{name.upper()}": str(value) for name, value in values.items()}
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"{prelude}\nimport runpy\nrunpy.run_module('services.registry', run_name='__main__')",
            ],
            cwd=ROOT,
            env={**os.environ, **environment},
            stderr=subprocess.PIPE,
            text=True,
        )

    async def address(self) -> str:
        """Where it answers, as soon as its log says that it runs."""
        async with asyncio.timeout(WAIT_S):
            return await asyncio.to_thread(self._read_address)

    def kill(self) -> None:
        """SIGKILL: nothing is flushed."""
        self._process.kill()
        self._process.communicate(timeout=WAIT_S)

    def terminate(self) -> None:
        """SIGTERM."""
        self._process.terminate()

    @contextmanager
    def held_up(self) -> Iterator[None]:
        """Does nothing in the block, as on a machine that hangs."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    async def ended(self) -> tuple[int, str]:
        """Exit code, and what it logged since :meth:`address`."""
        async with asyncio.timeout(WAIT_S):
            _, log = await asyncio.to_thread(self._process.communicate, timeout=WAIT_S)
        return self._process.returncode, log

    def _read_address(self) -> str:
        assert self._process.stderr is not None
        lines = []
        for line in self._process.stderr:
            lines.append(line)
            message: str = json.loads(line)["message"] if line.startswith("{") else ""
            if " is running at " in message:
                return message.rpartition(" ")[2]
        raise AssertionError("the registry did not start:\n" + "".join(lines))


@contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[Path]:
    """A file system of this size; skips the test where it may not be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, capture_output=True)


def reason(error: pytest.ExceptionInfo[MeshError]) -> tuple[str, Mapping[str, str]]:
    """Reason and metadata of a caught error."""
    return error.value.reason.value, error.value.metadata
