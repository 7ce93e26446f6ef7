"""Containers and locks say the same as the code: one name, one port and one set of settings per service; no torch at the edge."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from packaging.requirements import Requirement

from splitmesh.kernel.channels import Channels
from splitmesh.kernel.config import ENV_PREFIX, ServiceSettings
from splitmesh.kernel.discovery_consul import ConsulDiscovery
from splitmesh.kernel.discovery_static import StaticDiscovery
from splitmesh.kernel.lifecycle import App, Kernel
from splitmesh.kernel.ports import PORTS
from splitmesh.kernel.server import HealthControl
from splitmesh.kernel.signals import Span
from splitmesh.kernel.telemetry import Telemetry
from splitmesh.testing.mesh import MODULES

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))

PROFILES = {
    **{service: {"cloud"} for service in ("registry", "partitioner", "compressor", "router", "fleet", "tail")},
    "head": {"edge"},
    "agent": {"edge"},
    "consul": {"edge", "cloud"},
    "jaeger": {"observability"},
}
FOREIGN = {"consul", "jaeger"}
FULL_PREFIX = "splitmesh-"

# What each lock must hold, by extra, and what it must not.
LOCK_EXTRAS = {
    "edge": {"edge"},
    "cloud": {"cloud"},
    "run": {"edge", "cloud", "video"},
    "train": {"edge", "cloud", "video", "pytorch", "train"},
    "dev": {"edge", "cloud", "video", "pytorch", "train", "dev"},
    "tensorflow": {"edge", "cloud", "tensorflow"},
}
NEVER_IN = {"edge": {"torch", "onnx", "scipy", "onnxscript"}, "cloud": {"torch"}, "run": {"torch"}}

# In pieces, so that this file does not name them either.
REGISTRY_HOSTS = [
    ".".join(parts)
    for parts in (
        ("pythonhosted", "org"),
        ("pypi", "org"),
        ("deb", "debian", "org"),
        ("registry", "npmjs", "org"),
        ("proxy", "golang", "org"),
    )
]
INDEX_OPTIONS = re.compile("--(extra-)?index-url|--find-links|--trusted-host|--registry|https?://")


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return loaded


SERVICES: dict[str, dict[str, Any]] = compose()["services"]
OURS = sorted(set(SERVICES) - FOREIGN)


def unless_set(text: str) -> str:
    """What compose makes of a value where no variable of ours is set: each ``${NAME:-default}`` is its default."""
    return re.sub(r"\$\{[A-Z_]+:-([^}]*)\}", r"\1", str(text))


def environment(service: str) -> dict[str, str]:
    return {name: unless_set(value) for name, value in SERVICES[service]["environment"].items()}


def settings_of(service: str) -> type[ServiceSettings]:
    config = importlib.import_module(f"{MODULES[service]}.config")
    (found,) = [
        value
        for value in vars(config).values()
        if isinstance(value, type) and issubclass(value, ServiceSettings) and value.__module__ == config.__name__
    ]
    return found


def stages() -> dict[str, str]:
    """Instructions of the Dockerfile by stage, without comments and with continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    parts = re.split(r"^FROM (\S+) AS (\S+)$", text, flags=re.MULTILINE)
    return {name: f"FROM {base}{body}" for base, name, body in zip(parts[1::3], parts[2::3], parts[3::3], strict=True)}


def with_all_it_is_made_from(stage: str) -> str:
    """A stage's instructions with those of the stages it starts from or copies out of."""
    known, found, waiting = stages(), "", [stage]
    while waiting:
        body = known.get(waiting.pop(), "")
        found += body
        waiting += re.findall(r"^FROM (\S+)", body) + re.findall(r"--from=(\S+)", body)
    return found


def pins(lock: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / f"{lock}.lock").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# One name, one port


def test_compose_runs_every_service_and_nothing_unknown() -> None:
    assert set(OURS) == set(PORTS) == set(MODULES)
    assert set(SERVICES) == set(PROFILES)


@pytest.mark.parametrize("service", OURS)
def test_folder_module_and_image_bear_the_name(service: str) -> None:
    module = MODULES[service]
    assert module.rpartition(".")[2] == service
    assert (ROOT / Path(*module.split(".")) / "__main__.py").is_file()
    assert SERVICES[service]["build"]["args"]["APP"] == module
    assert unless_set(SERVICES[service]["image"]) == f"splitmesh/{service}:dev"


@pytest.mark.parametrize("service", OURS)
def test_port_is_that_of_the_table_inside_and_outside(service: str) -> None:
    port = PORTS[service]
    assert environment(service)["SPLITMESH_PORT"] == str(port)
    assert [unless_set(published) for published in SERVICES[service]["ports"]] == [f"127.0.0.1:{port}:{port}"]


@pytest.mark.parametrize("service", OURS)
async def test_consul_and_traces_bear_the_name(service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    spans = InMemorySpanExporter()
    telemetry = Telemetry(service, processor=SimpleSpanProcessor(spans))
    channels = Channels(StaticDiscovery({}))
    try:
        build = importlib.import_module(f"{MODULES[service]}.app").build
        app: App = build(settings_of(service)(), Kernel(telemetry, channels, HealthControl()))
        assert app.name == service
        with telemetry.span(Span.RPC_SERVER):
            pass
        assert spans.get_finished_spans()[0].resource.attributes["service.name"] == FULL_PREFIX + service
    finally:
        await channels.close()
        telemetry.shutdown()
    consul = ConsulDiscovery()
    assert consul._prefix + app.name == FULL_PREFIX + service
    await consul.close()


@pytest.mark.parametrize("service", OURS)
def test_the_process_calls_itself_by_the_name(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []
    lifecycle: ModuleType = importlib.import_module("splitmesh.kernel.lifecycle")
    monkeypatch.setattr(lifecycle, "main", lambda *arguments: called.append(arguments))
    source = (ROOT / Path(*MODULES[service].split(".")) / "__main__.py").read_text()
    exec(compile(source, f"{service}/__main__.py", "exec"), {"__name__": "__main__"})
    ((name, settings, build, _about),) = called
    assert name == service
    assert settings is settings_of(service)
    assert build is importlib.import_module(f"{MODULES[service]}.app").build


# Settings and profiles


@pytest.mark.parametrize("service", OURS)
def test_every_variable_is_a_setting_of_the_service(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = settings_of(service).model_fields
    given = environment(service)
    for name in given:
        assert name.startswith(ENV_PREFIX), name
        assert name.removeprefix(ENV_PREFIX).lower() in fields, name
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    settings = settings_of(service)()
    assert settings.discovery == "consul"
    assert settings.consul_address == "consul:8500"


def test_every_variable_of_the_image_is_a_setting_of_every_service() -> None:
    for name in re.findall(rf"\b({ENV_PREFIX}[A-Z_]+)=", DOCKERFILE.read_text()):
        for service in OURS:
            assert name.removeprefix(ENV_PREFIX).lower() in settings_of(service).model_fields, (name, service)


def test_what_a_machine_may_set_is_told_at_the_top() -> None:
    text = COMPOSE.read_text()
    told, _, rest = text.partition("\nname: splitmesh\n")
    for name in set(re.findall(r"\$\{([A-Z_]+)", rest)):
        assert re.search(rf"^# .*\b{name}\b", told, flags=re.MULTILINE), name


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_profiles_are_as_stated(service: str) -> None:
    assert set(SERVICES[service]["profiles"]) == PROFILES[service]


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_who_is_waited_for_is_in_the_same_profiles(service: str) -> None:
    for other, wanted in SERVICES[service].get("depends_on", {}).items():
        assert PROFILES[service] <= PROFILES[other]
        assert wanted["condition"] == "service_healthy"
        assert "healthcheck" in SERVICES[other]


# Containers that can do little harm


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_a_container_may_write_nothing_but_its_data_and_has_no_rights(service: str) -> None:
    settings = SERVICES[service]
    assert settings["read_only"] is True
    assert settings["cap_drop"] == ["ALL"]
    assert settings["security_opt"] == ["no-new-privileges:true"]
    assert settings["restart"] == "unless-stopped"
    assert "privileged" not in settings


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_ports_are_published_to_this_machine_unless_told_otherwise(service: str) -> None:
    for published in SERVICES[service]["ports"]:
        assert unless_set(published).startswith("127.0.0.1:")


def test_the_trace_ui_stays_on_this_machine_whatever_is_set() -> None:
    assert "127.0.0.1:16686:16686" in SERVICES["jaeger"]["ports"]


@pytest.mark.parametrize("service", OURS)
def test_a_service_has_time_to_drain_before_it_is_killed(service: str) -> None:
    grace_s = int(SERVICES[service]["stop_grace_period"].removesuffix("s"))
    assert grace_s > settings_of(service).model_fields["drain_s"].default + 5


@pytest.mark.parametrize("service", OURS)
def test_only_what_must_outlive_the_container_has_a_named_volume(service: str) -> None:
    volumes = SERVICES[service].get("volumes", [])
    own = [one for one in volumes if not one.endswith(":ro")]
    assert own == ([] if service in ("partitioner", "tail") else [f"{service}:/data"])
    assert set(volumes) - set(own) == ({"head:/head:ro"} if service == "agent" else set())
    assert set(compose()["volumes"]) == {name for name in OURS if SERVICES[name].get("volumes")}


# Images


@pytest.mark.parametrize("service", OURS)
def test_a_service_is_built_from_the_one_dockerfile(service: str) -> None:
    build = SERVICES[service]["build"]
    assert ROOT / build["context"] / build["dockerfile"] == DOCKERFILE
    assert build["target"] == ("edge" if MODULES[service].startswith("edge.") else "cloud")


@pytest.mark.parametrize("target", ["edge", "cloud"])
def test_an_image_runs_without_root_says_how_it_is_and_stops_when_told(target: str) -> None:
    made = with_all_it_is_made_from(target)
    (user,) = re.findall(r"^USER (\S+)$", made, flags=re.MULTILINE)
    assert user.partition(":")[0].isdigit()
    assert int(user.partition(":")[0]) > 0
    assert re.search(r'^HEALTHCHECK .*CMD \["python3", "-m", "splitmesh.kernel.probe"\]', made, flags=re.MULTILINE)
    assert re.search(r"^STOPSIGNAL SIGTERM$", made, flags=re.MULTILINE)
    assert re.search(r"^VOLUME /data$", made, flags=re.MULTILINE)
    assert "XDG_STATE_HOME=/data" in made


@pytest.mark.parametrize("target", ["edge", "cloud"])
def test_an_image_installs_its_lock_and_nothing_else(target: str) -> None:
    made = with_all_it_is_made_from(target)
    assert f"--requirement {target}.lock" in made
    installs = re.findall(r"pip (?:install|wheel) ([^&\n]+)", made)
    for options in installs:
        assert f"--requirement {target}.lock" in options or "--no-deps" in options, options
    assert "apt-get" not in made


def test_only_what_the_dockerfile_copies_enters_a_build() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    let_in = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied: set[str] = set()
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE.read_text(), flags=re.MULTILINE):
        copied |= {source.split("/")[0] for source in line.split()[:-1]}
    assert let_in == copied
    assert all((ROOT / name).exists() for name in let_in)


# Locks


def test_there_is_a_lock_for_each_way_of_installing() -> None:
    assert {path.stem for path in LOCKS} == set(LOCK_EXTRAS)


@pytest.mark.parametrize("lock", LOCK_EXTRAS)
def test_a_lock_holds_all_that_the_package_asks_for(lock: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = list(project["dependencies"])
    for extra in LOCK_EXTRAS[lock]:
        asked += project["optional-dependencies"][extra]
    locked = pins(lock)
    for requirement in map(Requirement, asked):
        name = normalised(requirement.name)
        if name != "splitmesh" and (requirement.marker is None or requirement.marker.evaluate()):
            assert name in locked, f"{requirement}: run make lock"
            assert requirement.specifier.contains(locked[name], prereleases=True), f"{requirement}: run make lock"


@pytest.mark.parametrize("lock", LOCK_EXTRAS)
def test_a_lock_pins_exactly_and_names_no_place(lock: str) -> None:
    for line in (ROOT / "requirements" / f"{lock}.lock").read_text().splitlines():
        assert line.startswith("# ") or re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line), line


@pytest.mark.parametrize("lock", NEVER_IN)
def test_what_must_not_be_installed_is_not_locked(lock: str) -> None:
    assert not NEVER_IN[lock] & set(pins(lock))


def test_what_two_locks_share_has_one_version() -> None:
    everything = pins("dev")
    for lock in LOCK_EXTRAS:
        # What only TensorFlow needs is in its own lock alone.
        shared = {name: pin for name, pin in pins(lock).items() if lock != "tensorflow" or name in everything}
        assert shared.items() <= everything.items()


def test_torch_is_the_same_for_everyone() -> None:
    assert pins("train")["torch"] == pins("dev")["torch"] == "2.13.0"


def tracked_or_new() -> list[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / line for line in listed.stdout.splitlines()]


def test_no_file_names_the_host_of_a_package_registry() -> None:
    for path in tracked_or_new():
        if path.is_file() and path.suffix not in (".onnx", ".png", ".jpg"):
            text = path.read_text(errors="replace")
            assert not [host for host in REGISTRY_HOSTS if host in text], path


def test_what_installs_leaves_the_choice_of_a_registry_to_the_machine() -> None:
    files = [ROOT / "Makefile", COMPOSE, DOCKERFILE, ROOT / ".ci" / "run", *LOCKS, *(ROOT / "tools").glob("*.*")]
    for path in files:
        assert not INDEX_OPTIONS.search(path.read_text()), path


def test_docker_compose_itself_accepts_the_file() -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, timeout=60).returncode:
        pytest.skip("docker compose is not on this machine")
    profiles = [f"--profile={profile}" for profile in ("edge", "cloud", "observability")]
    command = [docker, "compose", "--file", str(COMPOSE), *profiles, "config", "--quiet"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
