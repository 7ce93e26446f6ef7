"""The Makefile's promises: bare `make` explains itself, a target installs only what it needs, failures say what to do."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = ROOT / "Makefile"
TARGETS = {"setup", "tensorflow", "demo", "test", "check", "bench", "protos", "lock", "up", "down", "clean", "help"}
CHECKS = ("ruff check", "ruff format --check", "-m mypy src services", "lint-imports", "generate_stubs.py --check")

MAKE = shutil.which("make")
pytestmark = pytest.mark.skipif(MAKE is None, reason="make is not on this machine")


def run_make(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Without the variables of a `make test` around us, which would be handed down."""
    given = {"PATH": "/usr/local/bin:/usr/bin:/bin", **(environment or {})}
    command = [str(MAKE), "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, timeout=60)


def would_run(venv: Path, *arguments: str) -> str:
    """What a target would do where nothing is installed yet."""
    done = run_make("--dry-run", f"VENV={venv}", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def program(folder: Path, name: str, lines: Sequence[str]) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return path


def test_bare_make_explains_every_target() -> None:
    done = run_make()
    assert done.returncode == 0
    assert done.stderr == ""
    listed = dict(re.findall(r"^  ([a-z-]+) +(.+)$", done.stdout, flags=re.MULTILINE))
    assert set(listed) == TARGETS
    assert all(len(explanation) > 5 for explanation in listed.values())


def test_no_target_is_mistaken_for_a_file() -> None:
    phony = re.findall(r"^\.PHONY: (.+)$", MAKEFILE.read_text(), flags=re.MULTILINE)
    assert set(" ".join(phony).split()) >= TARGETS


def test_the_demo_installs_no_torch(tmp_path: Path) -> None:
    plan = would_run(tmp_path / "venv", "demo", "ARGS=--frames 7")
    assert "requirements/run.lock" in plan
    assert "train.lock" not in plan
    assert "dev.lock" not in plan
    assert re.search(r"python -m examples\.solder_joints\.demo +--frames 7$", plan, flags=re.MULTILINE)


def test_the_demo_on_real_pictures_installs_what_training_needs(tmp_path: Path) -> None:
    plan = would_run(tmp_path / "venv", "demo", "DATA=/pictures", "ARGS=--frames 7")
    assert "requirements/train.lock" in plan
    assert '--data "/pictures" --frames 7' in plan


def test_check_runs_every_check_and_no_other_command_does(tmp_path: Path) -> None:
    plan = would_run(tmp_path / "venv", "check")
    assert all(step in plan for step in CHECKS)
    for folder in ("src", "services", "edge", "cloud", "examples", "tools"):
        assert re.search(rf"-m mypy .*\b{folder}\b", plan)


def test_types_are_checked_strictly() -> None:
    # By the configuration: `--strict` on the command line would undo its one exception, for grpc.
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]["strict"] is True
    assert "--strict" not in MAKEFILE.read_text()


def test_an_installation_is_not_repeated_until_its_lock_changes(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    venv.mkdir()
    for stamp in (".made", ".run.installed", ".train.installed", ".dev.installed"):
        (venv / stamp).touch()
    for target in ("demo", "test", "check"):
        assert " install " not in would_run(venv, target)
    assert " install " in would_run(venv, "demo", "--what-if=requirements/run.lock")
    assert " install " not in would_run(venv, "demo", "--what-if=requirements/dev.lock")


def test_the_installation_of_a_developer_holds_the_others(tmp_path: Path) -> None:
    plan = would_run(tmp_path / "venv", "test")
    stamps = next(line for line in plan.splitlines() if line.startswith("touch ") and ".dev.installed" in line)
    assert ".run.installed" in stamps
    assert ".train.installed" in stamps


def test_quick_benchmarks_are_asked_for_by_one_word(tmp_path: Path) -> None:
    assert "--quick" in would_run(tmp_path / "venv", "bench", "QUICK=1", "BENCHMARKS=benchmarks/some.py")
    assert "--quick" not in would_run(tmp_path / "venv", "bench", "BENCHMARKS=benchmarks/some.py")


def test_no_benchmarks_are_no_failure(tmp_path: Path) -> None:
    assert "for file in ;" in would_run(tmp_path / "venv", "bench", "BENCHMARKS=")


def test_an_old_python_is_refused_by_name(tmp_path: Path) -> None:
    old = program(tmp_path, "old-python", ['[ "$1" = --version ] && echo "Python 3.9.2"', "exit 1"])
    done = run_make("demo", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}")
    assert done.returncode != 0
    assert "needs Python 3.11 or later" in done.stderr
    assert "Python 3.9.2" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_a_python_without_venv_is_told_where_to_get_it(tmp_path: Path) -> None:
    # Says yes to the question about the version and no to the one about the modules.
    bare = program(tmp_path, "bare-python", ['case "$2" in *version_info*) exit 0 ;; esac', "exit 1"])
    done = run_make("demo", f"PYTHON={bare}", f"VENV={tmp_path / 'venv'}")
    assert done.returncode != 0
    assert "python3-venv" in done.stderr


def test_without_docker_up_says_so(tmp_path: Path) -> None:
    empty = tmp_path / "bin"
    empty.mkdir()
    done = run_make("up", environment={"PATH": str(empty)})
    assert done.returncode != 0
    assert "needs docker" in done.stderr
    assert "make demo" in done.stderr


def test_without_the_compose_plugin_up_says_so(tmp_path: Path) -> None:
    program(tmp_path / "bin", "docker", ["exit 1"])
    done = run_make("up", environment={"PATH": str(tmp_path / "bin")})
    assert done.returncode != 0
    assert "compose plugin" in done.stderr


@pytest.mark.parametrize(
    ("profiles", "endpoint"), [("edge cloud observability", "jaeger:4317"), ("edge", ""), ("cloud", "")]
)
def test_up_sends_traces_only_where_it_starts_a_receiver(profiles: str, endpoint: str, tmp_path: Path) -> None:
    plan = would_run(tmp_path, "up", f"PROFILES={profiles}")
    assert f'OTLP_ENDPOINT="${{OTLP_ENDPOINT:-{endpoint}}}"' in plan
    for profile in profiles.split():
        assert f"--profile {profile}" in plan


def test_ci_does_what_a_person_does() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
    steps = ["install_real_parts.sh", "SPLITMESH_REQUIRE_REAL_PARTS=1", "make check", "make test", "make demo"]
    positions = [script.index(f"\n{step}") if step.startswith("make") else script.index(step) for step in steps]
    assert positions == sorted(positions)
