"""The trust of a mesh on this machine: a root, a key for each of those who make versions, and the keyring that holds them.

Written into a folder once; a mesh that comes back over the same folder has the same keys.
"""

from __future__ import annotations

import os
from pathlib import Path

from splitmesh.client.registry import RegistryClient
from splitmesh.client.trust import Trust
from splitmesh.trust.keyring import sign_keyring
from splitmesh.trust.keys import SigningKey
from splitmesh.trust.ring_changes import first_keyring
from splitmesh.trust.trusted_key import TrustedKey

OPERATOR = "operator"
"""Signs what comes from outside the mesh: commands, tests."""
MAKERS = (OPERATOR, "partitioner", "compressor")

ROOT_KEY = "root.pem"
"""The root's private key: with it the keyring is changed."""
PINNED = "roots.pem"
KEYRING = "keyring.json"


class MeshKeys:
    """Keys in ``folder``; made when it is not there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        if not (folder / KEYRING).exists():
            _make(folder)

    @property
    def root_key(self) -> Path:
        """File of the root's private key."""
        return self._folder / ROOT_KEY

    @property
    def keyring(self) -> bytes:
        """The first one, an envelope."""
        return (self._folder / KEYRING).read_bytes()

    def settings(self, service: str) -> dict[str, str]:
        """By which a service, or ``OPERATOR``, verifies, and signs where it makes versions."""
        signing = {"signing_key": str(self._folder / f"{service}.pem")} if service in MAKERS else {}
        return {"trust_root": str(self._folder / PINNED), **signing}

    async def hand_over(self, registry: RegistryClient) -> None:
        """Gives the registry its keyring, and signs the versions that it holds already as the operator."""
        await registry.put_keyring(self.keyring)
        operator = Trust((), self._folder, SigningKey.from_pem((self._folder / f"{OPERATOR}.pem").read_bytes()))
        for model in await registry.list_models():
            for version in await registry.list_versions(model.name):
                if not version.signatures and (envelope := operator.sign_version(version)) is not None:
                    await registry.add_signature(version.model, version.version, envelope)


def _make(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    root, keys = SigningKey.generate(), {name: SigningKey.generate() for name in MAKERS}
    for name, key in {"root": root, **keys}.items():
        handle = os.open(folder / f"{name}.pem", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(key.to_pem())
    (folder / PINNED).write_bytes(root.public.to_pem())
    ring = first_keyring([root.public], 1, [TrustedKey(key.public, name) for name, key in keys.items()])
    (folder / KEYRING).write_bytes(sign_keyring(ring, [root]))
