"""What a host says of itself: read from files of other machines laid out as Linux has them, and from this one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from splitmesh.errors import MeshError, Reason
from splitmesh.runtime.host import MIB, GpuFacts, HostFacts, describe_host, describe_host_apart, find_gpus
from splitmesh.runtime.host_backends import BackendFacts, find_backends
from splitmesh.runtime.host_limits import usable_cpus, usable_memory_bytes

XEON = """processor\t: 0
model name\t: Intel(R) Xeon(R) Gold 6430
flags\t\t: fpu sse4_2 avx avx2 fma f16c avx512f avx512_vnni amx_tile amx_int8 amx_bf16 rdrand
processor\t: 1
model name\t: Intel(R) Xeon(R) Gold 6430
flags\t\t: fpu sse4_2 avx avx2 fma f16c avx512f avx512_vnni amx_tile amx_int8 rdrand
"""
ARM = """processor\t: 0
Features\t: fp asimd evtstrm aes asimdhp asimddp i8mm bf16 sve
Hardware\t: NVIDIA Orin
"""
FACTS = HostFacts(
    "a processor",
    ("avx2",),
    4.0,
    8 << 30,
    "x86_64",
    "Linux 6.1",
    (GpuFacts("a GPU", 24 << 30, "550.1"),),
    (BackendFacts("onnxruntime-cpu", "1.2", ("fp32",), {"fp16": "slow"}),),
)


def lay(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def described(root: Path, run: Callable[[Sequence[str], float], str] | None = None) -> HostFacts:
    return describe_host(root=root, run=run or (lambda command, timeout_s: ""), backends=tuple)


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


def test_a_processor_has_the_instruction_sets_that_each_of_its_cores_has(tmp_path: Path) -> None:
    facts = described(lay(tmp_path, {"proc/cpuinfo": XEON}))
    assert facts.cpu_model == "Intel(R) Xeon(R) Gold 6430"
    assert set(facts.cpu_flags) >= {"avx512f", "avx512_vnni", "amx_int8", "fma"}
    assert "amx_bf16" not in facts.cpu_flags
    assert "rdrand" not in facts.cpu_flags


def test_an_arm_processor_has_neon_by_that_name_and_is_called_after_its_board(tmp_path: Path) -> None:
    facts = described(lay(tmp_path, {"proc/cpuinfo": ARM}))
    assert facts.cpu_model == "NVIDIA Orin"
    assert set(facts.cpu_flags) == {"neon", "asimdhp", "asimddp", "i8mm", "bf16", "sve"}


def test_where_nothing_is_written_the_host_is_described_all_the_same(tmp_path: Path) -> None:
    facts = described(tmp_path)
    assert facts.cpu_model
    assert (facts.cpu_flags, facts.memory_bytes, facts.gpus) == ((), 0, ())
    assert facts.cores >= 1


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, 8.0),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, 8.0),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "150000 100000\n"}, 1.5),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/a/cpu.max": "200000 100000\n",
            },
            2.0,
        ),
        # Within a container the group's path is the host's; what counts is the mounted root.
        ({"proc/self/cgroup": "0::/not/here\n", "sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3.0),
        (
            {
                "proc/self/cgroup": "5:cpu,cpuacct:/docker/x\n0::/\n",
                "sys/fs/cgroup/cpu/docker/x/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu/docker/x/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        (
            {
                "proc/self/cgroup": "5:cpu:/x\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
            },
            8.0,
        ),
        ({"proc/self/cgroup": "0::/../../etc\n", "sys/fs/cgroup/cpu.max": "what is this\n"}, 8.0),
    ],
)
@pytest.mark.usefixtures("eight_cores")
def test_cores_are_those_of_the_tightest_of_affinity_and_quotas(
    tmp_path: Path, files: dict[str, str], cpus: float
) -> None:
    assert usable_cpus(lay(tmp_path, files)) == cpus


def test_half_a_core_is_one_core() -> None:
    assert replace(FACTS, cpus=0.5).cores == 1
    assert replace(FACTS, cpus=2.9).cores == 2


@pytest.mark.parametrize(
    ("files", "size_bytes"),
    [
        ({"proc/meminfo": "MemTotal:       2048 kB\n"}, 2 * MIB),
        ({"proc/meminfo": "MemTotal: lots\n"}, 0),
        (
            {
                "proc/meminfo": "MemTotal: 2048 kB\n",
                "proc/self/cgroup": "0::/a\n",
                "sys/fs/cgroup/a/memory.max": f"{MIB}\n",
            },
            MIB,
        ),
        (
            {
                "proc/meminfo": "MemTotal: 2048 kB\n",
                "proc/self/cgroup": "0::/a\n",
                "sys/fs/cgroup/a/memory.max": "max\n",
            },
            2 * MIB,
        ),
        (
            {
                "proc/meminfo": "MemTotal: 2048 kB\n",
                "proc/self/cgroup": "4:memory:/x/y\n",
                "sys/fs/cgroup/memory/x/y/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/memory/x/memory.limit_in_bytes": f"{MIB}\n",
            },
            MIB,
        ),
    ],
)
def test_memory_is_that_of_the_tightest_limit(tmp_path: Path, files: dict[str, str], size_bytes: int) -> None:
    assert usable_memory_bytes(lay(tmp_path, files)) == size_bytes


def test_gpus_are_what_their_tool_prints_and_a_name_may_hold_a_comma() -> None:
    text = "NVIDIA L4, 23034, 550.54.15\nNVIDIA A100, 80GB PCIe, 81920, 550.54.15\nNo devices were found\n"
    assert find_gpus(lambda command, timeout_s: text) == (
        GpuFacts("NVIDIA L4", 23034 * MIB, "550.54.15"),
        GpuFacts("NVIDIA A100, 80GB PCIe", 81920 * MIB, "550.54.15"),
    )


@pytest.mark.parametrize(
    "error",
    [FileNotFoundError(), PermissionError(), subprocess.TimeoutExpired("x", 1), subprocess.CalledProcessError(9, "x")],
    ids=["missing", "forbidden", "hanging", "failing"],
)
def test_a_tool_that_is_missing_hangs_or_fails_means_no_gpu(error: Exception) -> None:
    def run(command: Sequence[str], timeout_s: float) -> str:
        raise error

    assert find_gpus(run) == ()


@pytest.mark.parametrize(
    "changed",
    [
        {"cpu_model": "another"},
        {"cpu_flags": ("avx2", "fma")},
        {"cpus": 2.0},
        {"architecture": "aarch64"},
        {"gpus": ()},
        {"gpus": (GpuFacts("a GPU", 24 << 30, "560.0"),)},
        {"backends": ()},
        {"backends": (BackendFacts("onnxruntime-cpu", "1.3", ("fp32",)),)},
        {"backends": (BackendFacts("onnxruntime-cpu", "1.2", ("fp32", "int8")),)},
        {"backends": (BackendFacts("onnxruntime-cpu", "1.2", ("fp32",), unusable="broken"),)},
    ],
    ids=str,
)
def test_the_fingerprint_changes_with_what_a_measurement_depends_on(changed: dict[str, Any]) -> None:
    assert replace(FACTS, **changed).fingerprint != FACTS.fingerprint


@pytest.mark.parametrize(
    "changed",
    [
        {"memory_bytes": 1},
        {"os": "Linux 6.2"},
        {"backends": (BackendFacts("onnxruntime-cpu", "1.2", ("fp32",), {"fp16": "other words"}),)},
    ],
    ids=str,
)
def test_the_fingerprint_stays_where_no_measurement_would_change(changed: dict[str, Any]) -> None:
    assert replace(FACTS, **changed).fingerprint == FACTS.fingerprint


def test_facts_cross_to_another_process_whole() -> None:
    assert HostFacts.from_json(FACTS.to_json()) == FACTS


def test_a_child_process_sees_what_this_one_sees() -> None:
    apart = describe_host_apart(os.environ)
    assert apart == describe_host()
    assert apart.fingerprint == describe_host().fingerprint
    (ort,) = [one for one in apart.backends if one.name == "onnxruntime-cpu"]
    assert "fp32" in ort.precisions
    assert not ort.unusable


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import sys; sys.exit('a driver crashed')", "ended with 1: a driver crashed"),
        ("print('no facts')", "did not say anything of use"),
        ("print('[]')", "did not say anything of use"),
        ("pass", "did not say anything of use"),
        ("import time; time.sleep(60)", "took longer than"),
    ],
)
def test_a_child_that_crashes_hangs_or_raves_is_said_and_costs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, words: str
) -> None:
    script = tmp_path / "python"
    script.write_text(f"#!{sys.executable}\n{program}\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(MeshError, match=words) as caught:
        describe_host_apart(os.environ, timeout_s=2.0 if "sleep" in program else 30.0)
    assert caught.value.reason is Reason.NOT_READY


class Libraries:
    """Stands for import: what is installed is what a test says."""

    def __init__(self, **modules: Any) -> None:
        self._modules = modules

    def __call__(self, name: str) -> Any:
        found = self._modules.get(name, ModuleNotFoundError(f"No module named {name!r}", name=name))
        if isinstance(found, Exception):
            raise found
        return found


def ort(*providers: str) -> Any:
    return SimpleNamespace(__version__="1.2", get_available_providers=lambda: list(providers))


def openvino(devices: Sequence[str], says: Sequence[str] = ("FP32", "BF16", "INT8")) -> Any:
    core = SimpleNamespace(available_devices=devices, get_property=lambda device, name: list(says))
    return SimpleNamespace(__version__="2026", Core=lambda: core)


def test_a_provider_that_computes_nothing_here_is_listed_with_the_reason() -> None:
    found = find_backends(Libraries(onnxruntime=ort("CUDAExecutionProvider", "CPUExecutionProvider")))
    assert [one.name for one in found] == ["onnxruntime-cpu", "onnxruntime-cuda"]
    assert not found[0].unusable
    assert "computes nothing here" in found[1].unusable


def test_each_device_of_openvino_is_a_back_end_with_the_numbers_that_it_names() -> None:
    found = find_backends(Libraries(openvino=openvino(["CPU", "GPU"])))
    by_name = {one.name: one for one in found}
    assert by_name["openvino-cpu"].precisions == ("fp32", "bf16", "int8")
    assert "FP16" in by_name["openvino-gpu"].refused["fp16"]


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (openvino([]), "finds no device"),
        (openvino(["CPU"], ["BIN"]), "computes with none of"),
        (OSError("libtbb.so.12: cannot open shared object file"), "libtbb.so.12"),
        (ModuleNotFoundError("No module named 'numpy.core'", name="numpy.core"), "numpy.core"),
    ],
    ids=["no device", "no precision", "no library", "no dependency"],
)
def test_an_openvino_that_cannot_be_used_says_why(module: Any, words: str) -> None:
    (found,) = find_backends(Libraries(openvino=module, onnxruntime=ModuleNotFoundError("x", name="x")))[1:]
    assert words in found.unusable


def test_what_is_not_installed_is_no_fact_about_the_host() -> None:
    assert [one.name for one in find_backends(Libraries(onnxruntime=ort("CPUExecutionProvider")))] == [
        "onnxruntime-cpu"
    ]
