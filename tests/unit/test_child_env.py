"""Children that read foreign bytes see no address, key or token of the process that started them."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from pathlib import Path

import pytest

from services.registry.check import CheckLimits, ModelCheck
from services.registry.datasets.check import ManifestCheck
from splitmesh.kernel.child_env import child_environment
from splitmesh.kernel.jobs import run_job

SECRETS = (
    "SPLITMESH_DATABASE_URL",
    "SPLITMESH_CONTENTS_OPTIONS",
    "AWS_SECRET_ACCESS_KEY",
    "NVIDIA_API_KEY",
    "TF_TOKEN_x",
)
KEPT = ("PATH", "LC_ALL", "TMPDIR", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "PYTHONPATH")
LIMITS = CheckLimits(check_memory_bytes=4 << 30, check_cpu_s=60, check_deadline_s=60.0, max_checks=1)
SAYS = """\
import json, os
print(json.dumps({"ok": True, "inputs": sorted(os.environ), "outputs": [], "summary": sorted(os.environ)}))
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SECRETS:
        monkeypatch.setenv(name, "secret")
    for name in KEPT:
        monkeypatch.setenv(name, os.environ.get(name, "1"))


def seen() -> list[str]:
    return sorted(os.environ)


def test_only_what_a_child_needs_is_kept_with_its_value() -> None:
    made = child_environment({"PATH": "/bin", "OMP_NUM_THREADS": "2", "SPLITMESH_X": "y", "path": "z", "XPATH": "q"})
    assert made == {"PATH": "/bin", "OMP_NUM_THREADS": "2"}


async def test_a_job_sees_no_secret() -> None:
    names = await run_job(seen, deadline_s=30.0, max_memory_bytes=2 << 30)
    assert set(KEPT) <= set(names)
    assert not set(SECRETS) & set(names)
    assert os.environ[SECRETS[0]] == "secret"


async def test_the_checks_of_the_registry_see_no_secret(tmp_path: Path) -> None:
    child = tmp_path / "child.py"
    child.write_text(SAYS)
    model = await ModelCheck(LIMITS, child=child).check("m.onnx", "0" * 64, nullcontext(child))
    assert set(KEPT) <= model.inputs
    assert not set(SECRETS) & model.inputs
    data = await ManifestCheck(LIMITS, child=child).read(nullcontext(child))
    assert set(KEPT) <= set(json.loads(data.summary))
    assert not set(SECRETS) & set(json.loads(data.summary))
