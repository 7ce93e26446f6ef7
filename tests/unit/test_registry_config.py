"""Settings of the registry: secrets are never shown, and limits that contradict each other are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from services.registry.config import RegistrySettings
from services.registry.content.bucket import BucketStore
from services.registry.content.folder import FolderStore
from services.registry.stores import content_store
from splitmesh.kernel.config import describe_settings

SECRETS = {
    "database_url": "postgresql://registry:hunter2@db/registry",
    "contents_options": '{"key": "k", "secret": "hunter2"}',
}


def test_secrets_are_shown_by_no_text_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = RegistrySettings.model_validate(SECRETS)
    assert "hunter2" not in f"{settings!r} {settings} {settings.model_dump()}"
    assert settings.storage_options() == {"key": "k", "secret": "hunter2"}
    for name, value in SECRETS.items():
        monkeypatch.setenv(f"SPLITMESH_{name.upper()}", value)
    assert "hunter2" not in describe_settings(RegistrySettings)


@pytest.mark.parametrize(
    "wrong",
    [
        {"contents_options": '{"secret": "hunter2"'},
        {"contents_options": '["hunter2"]'},
        {**SECRETS, "max_watchers": 5000, "max_concurrent_rpcs": 5000},
    ],
    ids=["cut", "list", "no-room"],
)
def test_a_refusal_of_settings_quotes_no_secret(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as error:
        RegistrySettings.model_validate(wrong)
    assert "hunter2" not in str(error.value)


def test_the_settings_alone_choose_the_stores(tmp_path: Path) -> None:
    assert isinstance(content_store(RegistrySettings(data_dir=tmp_path)), FolderStore)
    assert isinstance(content_store(RegistrySettings(data_dir=tmp_path, contents_url="memory://m/p")), BucketStore)
