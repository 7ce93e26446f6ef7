"""`splitmesh models import --dataset`: a version remembers the manifest of the data it was made with, which was verified."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from splitmesh.testing.keys import MeshKeys
from tests.integration.command_line import model_files, refused
from tests.integration.models_desk import Desk, put_keyring, registry_process
from tests.unit.dataset_files import lay, png


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("desk")
    model_files(folder)
    keys = MeshKeys(folder / "keys")
    with pytest.MonkeyPatch.context() as patch, registry_process(folder, keys.settings("registry")) as address:
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        asyncio.run(put_keyring(address, keys.keyring))
        yield Desk(folder, f"registry={address}", keys)


def take_in(desk: Desk, count: int) -> str:
    """A version of the dataset in the registry; the digest of its manifest."""
    rows = "".join(f"{n}.png,{('bad', 'good')[n % 2]}\n" for n in range(count))
    source = lay(desk.folder / f"in-{count}", {f"{n}.png": png(n) for n in range(count)})
    lay(source, {"labels.csv": f"image,label\n{rows}"})
    made = desk.run(
        *("datasets", "import", source, "--form", "csv", "--name", "boards"),
        *("--folder", desk.folder / "site", "--json"),
    )
    return str(made.json["manifest"])


def test_a_version_remembers_the_data_it_was_made_with_and_their_roles(desk: Desk) -> None:
    digests = [take_in(desk, count) for count in (4, 6)]
    made = desk.import_("--dataset", "boards:1", "--dataset", "boards:2=test").json
    assert made["lineage"]["datasets"] == [
        {"dataset": "boards", "version": 1, "sha256": digests[0], "role": "train"},
        {"dataset": "boards", "version": 2, "sha256": digests[1], "role": "test"},
    ]
    shown = desk.run("models", "lineage", f"{made['model']}:{made['version']}")
    assert "boards:1" in shown.out
    assert "boards:2" in shown.out
    refused(desk.import_("--dataset", "boards:3"), "VERSION_NOT_FOUND")
    refused(desk.import_("--dataset", "boards"), "FIELD_INVALID")
