"""An operator's desk: commands that sign and verify, run in this process, and a registry in another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from splitmesh.client.registry import RegistryClient
from splitmesh.kernel.channels import Channels
from splitmesh.kernel.config import ENV_PREFIX
from splitmesh.kernel.discovery_static import StaticDiscovery
from splitmesh.testing.keys import OPERATOR, MeshKeys
from tests.integration.command_line import Ended, splitmesh_here
from tests.support.worlds import ROOT

MODEL = "stripes"
READY_TRIES = 1200
READY_POLL_S = 0.05


@dataclass(frozen=True)
class Desk:
    """An operator's desk: commands that sign and verify, and files to give them."""

    folder: Path
    addresses: str
    keys: MeshKeys

    def run(self, *arguments: object, key: str = OPERATOR, trusting: bool = True) -> Ended:
        settings = {name.upper(): value for name, value in self.keys.settings(key).items()}
        if not trusting:
            settings = {}
        return splitmesh_here(*arguments, STATIC_ADDRESSES=self.addresses, **settings)

    def import_(self, *options: object, name: str = MODEL) -> Ended:
        files = self.folder
        return self.run(
            *("models", "import", files / "small.onnx", "--name", name, "--labels", files / "labels.json"),
            *("--preprocess", files / "preprocess.json", *options, "--json"),
        )


@contextmanager
def registry_process(folder: Path, settings: dict[str, str]) -> Iterator[str]:
    """A registry as a process of its own, so that commands run in this one, without waiting for Python each time."""
    ready = folder / "ready.json"
    values = {
        **settings,
        "data_dir": folder / "registry",
        "ready_file": ready,
        "port": 0,
        "min_free_bytes": 0,
    }
    own = {f"{ENV_PREFIX}{name.upper()}": str(value) for name, value in values.items()}
    command = [sys.executable, "-m", "services.registry"]
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, **own}, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(READY_TRIES):
                if ready.exists():
                    break
                assert process.poll() is None, "the registry ended"
                time.sleep(READY_POLL_S)
            yield str(json.loads(ready.read_text())["address"])
        finally:
            process.terminate()


async def put_keyring(address: str, keyring: bytes) -> None:
    """As an operator does once."""
    channels = Channels(StaticDiscovery({"registry": [address]}))
    try:
        await RegistryClient(channels).put_keyring(keyring)
    finally:
        await channels.close()
