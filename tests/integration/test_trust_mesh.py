"""Trust across a mesh of real processes: what is refused, what goes on answering meanwhile, what an operator does about it."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from splitmesh.api.segment.v1 import segment_pb2, segment_pb2_grpc
from splitmesh.client import Answer, AnsweredBy, Mesh
from splitmesh.client.registry import RegistryClient
from splitmesh.client.trust import Trust
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import mesh_errors
from splitmesh.testing.mesh import LocalMesh, ProcessLauncher
from splitmesh.trust.keys import SigningKey
from tests.integration.command_line import splitmesh
from tests.support.models import EASY, HARD, LABELS, exit_version, picture
from tests.support.wire import run_stream
from tests.support.worlds import MODEL, ROOT, answered_by, answered_by_version, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")

PRODUCTION = "production"
REFUSED_WITHIN_S = 30.0


@dataclass(frozen=True)
class Line:
    """A mesh whose head answers by version 1, and its gateway."""

    mesh: LocalMesh
    gateway: Mesh
    folder: Path

    async def keys(self, *arguments: object, root: Path | None = None) -> None:
        """`splitmesh keys`, which must succeed; with the mesh's root key."""
        settings = {name.upper(): value for name, value in self.mesh.environment().items()}
        roots = ("--root", root or self.root_key)
        ended = await splitmesh("keys", *arguments, *roots, **settings)
        assert ended.code == 0, ended

    @property
    def root_key(self) -> Path:
        assert self.mesh.keys is not None
        return self.mesh.keys.root_key

    async def push(self, key: SigningKey | None) -> int:
        """A new version; signed by the operator where no key is named."""
        registry = self.mesh.registry()
        if key is not None:
            registry = RegistryClient(self.mesh.channels, trust=_signing(key, self.folder))
        made = await registry.create_version(MODEL, exit_version(labels=LABELS), created_by="push")
        return made.version

    async def promote(self, version: int) -> None:
        await self.mesh.registry().set_alias(MODEL, PRODUCTION, version)

    async def until_refused(self, version: int, reason: Reason) -> None:
        """Until the head's log says that it refused the version, for that reason; it answers by another meanwhile."""
        answer = await self.until_told(f"version {version} cannot be used yet", reason.value)
        assert answer.version != version

    async def until_told(self, *texts: str) -> Answer:
        """Until the head's log says so; the answer that it gave then."""
        async with asyncio.timeout(REFUSED_WITHIN_S):
            while True:
                answer = await self.gateway.infer(picture(EASY))
                if self.says("head", *texts):
                    return answer

    async def tail_refuses(self, version: int, reason: Reason) -> None:
        """The tail, whoever asks it: a head that verifies nothing is no way round."""
        with pytest.raises(MeshError) as caught:
            async with mesh_errors(), run_stream(self.mesh.address("tail"), MODEL, version):
                pass
        assert caught.value.reason is reason

    async def loaded(self, service: str) -> list[tuple[int, str]]:
        """Versions in a service's memory, and why it would not load them again."""
        stub = segment_pb2_grpc.SegmentServiceStub(self.mesh.channels.at(self.mesh.address(service)))
        async with mesh_errors():
            described = await stub.Describe(segment_pb2.DescribeRequest(), timeout=10)
        return [(one.version, one.withdrawn) for one in described.segments]

    def says(self, service: str, *texts: str) -> bool:
        """Whether one line of a service's log holds all of the texts."""
        logs = (self.folder / "run").glob(f"{service}-*.log")
        lines = [line for log in logs for line in log.read_text(errors="replace").splitlines()]
        return any(all(text in line for text in texts) for line in lines)


def _signing(key: SigningKey, folder: Path) -> Trust:
    return Trust((), folder / "signing", key)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def line(tmp_path_factory: pytest.TempPathFactory, registered: Path) -> AsyncIterator[Line]:
    folder = tmp_path_factory.mktemp("trust")
    shutil.copytree(registered, folder / "registry")  # of versions that nobody had signed
    settings = {"head": {"models": MODEL, "switch_wait_s": "5", "segment_threads": "1"}}
    launcher = ProcessLauncher(ROOT, folder / "run")
    services = ("registry", "router", "tail", "head")
    async with LocalMesh(launcher, folder, settings=settings, services=services) as mesh:
        await serving(mesh.address("head"))
        async with mesh.gateway(deadline_ms=5000) as gateway:
            await answered_by(gateway, HARD, AnsweredBy.CLOUD_TAIL)  # the tail has verified and loaded it as well
            yield Line(mesh, gateway, folder)


async def test_an_unsigned_version_is_not_let_in(line: Line) -> None:
    unsigned = RegistryClient(line.mesh.channels)
    with pytest.raises(MeshError) as caught:
        await unsigned.create_version(MODEL, exit_version(labels=LABELS), created_by="stranger")
    assert caught.value.reason is Reason.SIGNATURE_MISSING
    with pytest.raises(MeshError) as caught:
        await line.push(SigningKey.generate())
    assert caught.value.reason is Reason.KEY_UNKNOWN


async def test_a_registry_that_swaps_an_artefact_is_found_out_and_the_version_before_goes_on(line: Line) -> None:
    wanted = await line.push(None)
    await line.mesh.stop("registry")
    with closing(sqlite3.connect(line.folder / "registry" / "registry.sqlite3")) as database, database:
        known = {row[0]: row[1:] for row in database.execute(
            "SELECT name, sha256, size_bytes FROM artifacts WHERE model = ? AND version = 2", (MODEL,)
        )}  # fmt: skip
        changed = database.execute(
            "UPDATE artifacts SET sha256 = ?, size_bytes = ? WHERE model = ? AND version = ? AND name = 'manifest.json'",
            (*known["manifest.json"], MODEL, wanted),
        )
        assert changed.rowcount == 1
    await line.mesh.start("registry")
    await line.promote(wanted)
    await line.until_refused(wanted, Reason.SIGNATURE_INVALID)
    await line.tail_refuses(wanted, Reason.SIGNATURE_INVALID)
    assert (await line.gateway.infer(picture(EASY))).version == 1


async def test_a_registry_without_trust_lets_anything_in_and_heads_and_tails_do_not(line: Line) -> None:
    await line.mesh.stop("registry")
    await line.mesh.start("registry", {"trust_root": ""})
    unsigned = RegistryClient(line.mesh.channels)
    made = await unsigned.create_version(MODEL, exit_version(labels=LABELS), created_by="stranger")
    await line.promote(made.version)
    await line.until_refused(made.version, Reason.SIGNATURE_MISSING)
    await line.tail_refuses(made.version, Reason.SIGNATURE_MISSING)
    await line.mesh.stop("registry")
    await line.mesh.start("registry")
    good = await line.push(None)
    await line.promote(good)
    await answered_by_version(line.gateway, good)


async def test_a_key_is_trusted_used_and_revoked_while_the_line_runs(line: Line, tmp_path: Path) -> None:
    key = SigningKey.generate()
    public = tmp_path / "press.pub"
    public.write_bytes(key.public.to_pem())
    await line.keys("trust", "press", "--public", public, "--models", MODEL)
    first, second = await line.push(key), await line.push(key)
    await line.promote(first)
    await answered_by_version(line.gateway, first)
    await answered_by(line.gateway, HARD, AnsweredBy.CLOUD_TAIL)

    await line.keys("revoke", "press", "--reason", "laptop stolen")
    await line.until_told(f"{MODEL} version {first} was loaded here and would be refused now", "laptop stolen")
    await line.promote(second)
    await line.until_refused(second, Reason.KEY_REVOKED)
    await line.tail_refuses(second, Reason.KEY_REVOKED)
    for service in ("head", "tail"):
        assert (first, "KEY_REVOKED") in await line.loaded(service)
    services = await splitmesh("services", **{name.upper(): value for name, value in line.mesh.environment().items()})
    assert services.out.count("to be replaced: KEY_REVOKED") == 2
    assert (await line.gateway.infer(picture(EASY))).version == first  # what is loaded goes on
    with pytest.raises(MeshError, match="laptop stolen"):
        await line.push(key)


async def test_after_a_rotation_of_the_root_the_new_one_counts_for_services_that_pinned_the_old(
    line: Line, tmp_path: Path
) -> None:
    new_root, key = tmp_path / "root.pem", SigningKey.generate()
    new_root.write_bytes(SigningKey.generate().to_pem())
    public = tmp_path / "lab.pub"
    public.write_bytes(key.public.to_pem())
    await line.keys("rotate-root", "--new", new_root, "--pin", tmp_path / "roots.pem")
    await line.keys("trust", "lab", "--public", public, root=new_root)
    version = await line.push(key)
    await line.promote(version)
    await answered_by_version(line.gateway, version)


async def test_with_the_cable_cut_a_head_starts_with_the_keyring_and_the_version_on_its_disk(line: Line) -> None:
    before = (await line.gateway.infer(picture(EASY))).version
    await line.mesh.stop("registry")
    await line.mesh.stop("head")
    await line.mesh.start("head")
    await serving(line.mesh.address("head"))
    assert (await line.gateway.infer(picture(EASY))).version == before
    await line.mesh.stop("head")
    shutil.rmtree(line.folder / "head" / "trust")
    await line.mesh.start("head")
    assert line.says("head", "the version on disk cannot be used", Reason.KEY_UNKNOWN.value)
