"""Datasets in the registry when something goes wrong: kills, callers that hang up, signatures that do not fit."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from splitmesh.api.registry.v1 import registry_pb2
from splitmesh.datasets.manifest import Dataset
from splitmesh.errors import Reason
from splitmesh.trust.keyring import Keyring, sign_keyring
from splitmesh.trust.keys import SigningKey
from splitmesh.trust.statement import Statement, dataset_subject, sign_statement
from splitmesh.trust.trusted_key import TrustedKey
from tests.integration.dataset_sets import PICTURES, Sets, refusal, version_of
from tests.integration.registry_world import Process, World, reaching, running


async def test_everything_is_there_after_a_kill_and_a_repeated_request_makes_no_second_version(tmp_path: Path) -> None:
    dataset = version_of(*PICTURES)
    process = Process(tmp_path / "data")
    try:
        address = await process.address()
        async with reaching(address) as channels:
            sets = Sets(World.at(tmp_path / "data", address, channels))
            for data in PICTURES[:3]:
                await sets.push(data)
            before = await sets.create(dataset, request_id="r")
    finally:
        process.kill()
    async with running(tmp_path / "data") as world:
        assert await Sets(world).create(dataset, request_id="r") == before
        assert (await Sets(world).get(count=True)).pictures_here == 3


@pytest.mark.parametrize("after_s", [0.0, 0.3, 0.6])
async def test_a_registry_killed_while_it_makes_a_version_has_one_or_none_and_then_makes_one(
    tmp_path: Path, after_s: float
) -> None:
    dataset = version_of(*PICTURES)
    process = Process(tmp_path / "data")
    try:
        address = await process.address()
        async with reaching(address) as channels:
            sets = Sets(World.at(tmp_path / "data", address, channels))
            sha256 = await sets.push(dataset.to_json())
            making = asyncio.create_task(sets.create_of(sha256, request_id="r"))
            await asyncio.wait([making], timeout=after_s)
            process.kill()
            await asyncio.gather(making, return_exceptions=True)
    finally:
        process.kill()
    async with running(tmp_path / "data") as world:
        made = await Sets(world).create(dataset, request_id="r")
        assert made.version == 1
        assert await Sets(world).versions() == [1]


ROOT, ALICE = SigningKey.generate(), SigningKey.generate()


def signed(dataset: Dataset, **changes: Any) -> bytes:
    """A signature of Alice's over a first version made by Ana."""
    values = {"name": "joints", "created_by": "ana", "parent": "0", "size": len(dataset.to_json()), **changes}
    facts = {"created_by": values["created_by"], "parent": values["parent"]}
    subject = dataset_subject(dataset.id, values["size"])
    return sign_statement(Statement("dataset-version", values["name"], (subject,), facts), ALICE)


async def test_with_a_trust_root_only_what_is_signed_as_it_is_gets_in(tmp_path: Path) -> None:
    root = tmp_path / "root.pub"
    root.write_bytes(ROOT.public.to_pem())
    keyring = Keyring(1, (ROOT.public,), 1, (TrustedKey(ALICE.public, "alice", datasets=("joints",)),))
    dataset = version_of(*PICTURES)
    async with running(tmp_path / "data", trust_root=root) as world:
        sets = Sets(world)
        await world.stub.PutKeyring(registry_pb2.PutKeyringRequest(keyring=sign_keyring(keyring, [ROOT])))
        assert (await refusal(sets.create(dataset))).reason is Reason.SIGNATURE_MISSING
        for changes in ({"name": "cells"}, {"created_by": "eve"}, {"parent": "3"}, {"size": 7}):
            error = await refusal(sets.create(dataset, signature=signed(dataset, **changes)))
            assert error.reason is Reason.SIGNATURE_INVALID, changes
        other = signed(version_of(*PICTURES[:3]))
        assert (await refusal(sets.create(dataset, signature=other))).reason is Reason.SIGNATURE_INVALID
        made = await sets.create(dataset, signature=signed(dataset))
        assert list(made.signatures) == [signed(dataset)]
