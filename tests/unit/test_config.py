"""Settings: every one documented and typed, read from the environment, bad ones refused."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from edge.head.config import HeadSettings
from splitmesh.kernel.config import ENV_PREFIX, ServiceSettings, data_dir_default, describe_settings
from splitmesh.kernel.discovery_consul import ConsulDiscovery
from splitmesh.kernel.discovery_static import StaticDiscovery
from splitmesh.kernel.lifecycle import make_discovery
from splitmesh.kernel.ports import PORTS, local_addresses
from splitmesh.testing.mesh import MODULES

ROOT = Path(__file__).parents[2]
UNITS = {"s": "seconds", "ms": "milliseconds"}


def all_settings() -> dict[str, type[ServiceSettings]]:
    """Of every service in the checkout that has settings, found by its files."""
    found = {}
    for path in sorted(ROOT.glob("*/*/config.py")):
        if path.parts[-3] in ("services", "edge", "cloud"):
            module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
            for value in vars(module).values():
                if isinstance(value, type) and issubclass(value, ServiceSettings) and value is not ServiceSettings:
                    found[path.parts[-2]] = value
    return found


SETTINGS = all_settings()
FIELDS = [
    pytest.param(settings, name, id=f"{service}.{name}")
    for service, settings in [("kernel", ServiceSettings), *SETTINGS.items()]
    for name in settings.model_fields
    if service == "kernel" or name not in ServiceSettings.model_fields
]


def test_every_service_that_can_be_started_has_settings() -> None:
    assert SETTINGS.keys() >= MODULES.keys()


@pytest.mark.parametrize(("settings", "name"), FIELDS)
def test_every_setting_says_what_it_means_and_in_which_unit(settings: type[ServiceSettings], name: str) -> None:
    field = settings.model_fields[name]
    description = field.description or ""
    assert re.fullmatch(r"\S.{10,}[.)]", description.replace("\n", " ")), description
    for suffix, unit in UNITS.items():
        if name.endswith(f"_{suffix}"):
            assert unit in description
    assert not field.is_required(), "a service starts without any setting"


@pytest.mark.parametrize("service", SETTINGS)
def test_the_help_of_a_service_lists_every_setting_with_its_default(service: str) -> None:
    text = describe_settings(SETTINGS[service])
    for name, field in SETTINGS[service].model_fields.items():
        assert f"{ENV_PREFIX}{name.upper()}  default " in text
        assert field.description is not None
        assert field.description in text


@pytest.mark.parametrize("service", SETTINGS)
def test_the_defaults_of_a_service_are_valid(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    settings = SETTINGS[service]()
    if "data_dir" in SETTINGS[service].model_fields:
        assert settings.data_dir == Path("/state/splitmesh") / service  # type: ignore[attr-defined]


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITMESH_PORT", "7001")
    monkeypatch.setenv("SPLITMESH_REFLECTION", "true")
    settings = ServiceSettings()
    assert (settings.port, settings.reflection) == (7001, True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", -1),
        ("port", 65536),
        ("port", "http"),
        ("node", ""),
        ("node", "../escape"),
        ("node", "x" * 65),
        ("discovery", "dns"),
        ("log_level", "LOUD"),
        ("max_frame_bytes", 0),
        ("max_frame_bytes", 1 << 40),
        ("default_deadline_s", 0),
        ("drain_s", -1),
        ("consul_check_interval_s", 0.5),
        ("unknown", 1),
    ],
)
def test_a_value_out_of_range_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        ServiceSettings(**{name: value})  # type: ignore[arg-type]
    assert caught.value.errors()[0]["loc"] == (name,)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("models", " , "),
        ("models", "Solder Joints"),
        ("models", "good,../escape"),
        ("models", ".hidden"),
        ("models", "x" * 65),
        ("alias", ""),
        ("alias", "Production"),
        ("alias", "12"),
        ("max_run_s", 0),
        ("max_cache_bytes", 0),
    ],
)
def test_a_head_refuses_what_the_registry_would_refuse(name: str, value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        HeadSettings(**{name: value})  # type: ignore[arg-type]
    assert caught.value.errors()[0]["loc"] == (name,)


def test_a_head_takes_every_name_that_the_registry_takes() -> None:
    settings = HeadSettings(models=f"a, solder-joints_2.1,{'x' * 64}", alias="2-go")
    assert settings.model_names() == ["a", "solder-joints_2.1", "x" * 64]


def test_a_token_is_not_printed() -> None:
    assert "hush" not in repr(ServiceSettings(consul_token="hush"))


def test_the_state_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/operator")
    assert data_dir_default("tail") == Path("/home/operator/.local/state/splitmesh/tail")


async def test_the_setting_decides_which_discovery_is_used() -> None:
    static = make_discovery(ServiceSettings(static_addresses="tail=10.0.0.1:7020;10.0.0.2:7020"))
    assert isinstance(static, StaticDiscovery)
    assert [one.address for one in await static.resolve("tail")] == ["10.0.0.1:7020", "10.0.0.2:7020"]
    consul = make_discovery(ServiceSettings(discovery="consul", consul_check_interval_s=2))
    assert isinstance(consul, ConsulDiscovery)
    await consul.close()


async def test_every_service_has_a_port_of_its_own() -> None:
    assert PORTS.keys() >= MODULES.keys()
    assert len(set(PORTS.values())) == len(PORTS)
    discovery = make_discovery(ServiceSettings(static_addresses=local_addresses()))
    (head,) = await discovery.resolve("head")
    assert head.address == f"127.0.0.1:{PORTS['head']}"


def test_a_models_priority_is_read_from_one_line() -> None:
    settings = HeadSettings(models="solder-joints,helmets,rest", priorities=" solder-joints=5, helmets = 1 ")
    assert [settings.priority_of(name) for name in settings.model_names()] == [5, 1, 0]
    assert HeadSettings().priority_of("solder-joints") == 0


@pytest.mark.parametrize(
    "priorities", ["a", "a=", "a=10", "a=-1", "a=x", "a=1,a=2", "A=1", "b=1", "a=1=2", "=3", "a=²"]
)
def test_a_priority_that_means_nothing_is_refused(priorities: str) -> None:
    with pytest.raises(ValidationError):
        HeadSettings(models="a", priorities=priorities)
