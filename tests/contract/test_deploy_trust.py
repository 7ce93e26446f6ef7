"""The compose file that turns trust on: everybody verifies, makers sign, and without it nothing of the kind is set."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from splitmesh.kernel.config import ENV_PREFIX
from tests.contract.test_deploy import OURS, ROOT, SERVICES

FILE = ROOT / "deploy" / "trust.yml"
TRUST: dict[str, Any] = yaml.safe_load(FILE.read_text())
MAKERS = {"partitioner", "compressor"}


def test_every_service_verifies_by_the_same_root_and_only_makers_sign() -> None:
    assert set(TRUST["services"]) == set(OURS)
    for name, service in TRUST["services"].items():
        (config,) = service["configs"]
        assert config["source"] in TRUST["configs"]
        assert service["environment"][f"{ENV_PREFIX}TRUST_ROOT"] == config["target"]
        key = service["environment"].get(f"{ENV_PREFIX}SIGNING_KEY")
        assert (key == f"/run/secrets/{name}-key") == (name in MAKERS)
        assert service.get("secrets", []) == ([f"{name}-key"] if name in MAKERS else [])
        assert set(service) <= {"environment", "configs", "secrets"}  # the rest is the other file's


def test_the_root_s_private_key_is_given_to_nobody() -> None:
    assert set(TRUST["secrets"]) == {f"{name}-key" for name in MAKERS}
    for name, secret in TRUST["secrets"].items():
        assert secret["file"] == f"${{TRUST_DIR}}/{name.removesuffix('-key')}.pem"


@pytest.mark.parametrize("service", OURS)
def test_without_it_trust_is_off(service: str) -> None:
    assert not {f"{ENV_PREFIX}TRUST_ROOT", f"{ENV_PREFIX}SIGNING_KEY"} & set(SERVICES[service]["environment"])
    assert not {"configs", "secrets"} & set(SERVICES[service])
