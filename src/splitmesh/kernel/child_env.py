"""What a child process that reads foreign bytes may know of the environment: where things are and how to compute.

The environment of a service also holds its database's address, keys and tokens. An allow-list, so that what nobody thought of
stays behind. No sandbox: a child runs as the same user.
"""

from __future__ import annotations

from collections.abc import Mapping

_NAMES = """
    PATH HOME TMPDIR TEMP TMP TZ LANG LANGUAGE VIRTUAL_ENV LD_LIBRARY_PATH LD_PRELOAD XDG_CACHE_HOME
    NVIDIA_VISIBLE_DEVICES NVIDIA_DRIVER_CAPABILITIES NVIDIA_TF32_OVERRIDE
"""
NAMES = frozenset(_NAMES.split())
PREFIXES = (
    *("LC_", "PYTHON", "MALLOC_", "DYLD_"),
    *("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "NUMEXPR_", "CUDA_", "ORT_", "TORCH_", "PYTORCH_"),
    *("TF_CPP_", "TF_ENABLE_", "TF_GPU_", "TF_NUM_", "TF_XLA_", "KERAS_"),
)


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that a child keeps: the path, home and temporary folder, the locale, Python, threads and accelerators."""
    return {name: value for name, value in environment.items() if name in NAMES or name.startswith(PREFIXES)}
