"""Named arrays of fixed kinds as a safetensors file: written the same for the same numbers, read with nothing taken on trust.

For small things that are fitted in one place and used in another (``deferral.py``, ``unusual.py``). Checks names, types,
sizes that must agree, finiteness, version and size of the file; what the numbers mean, and whether they make sense, is for
who reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from splitmesh.errors import MeshError, Reason

VERSION = "version"
"""Name of the array that holds the version, int64 ``[1]``."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What an array must be."""

    sizes: tuple[int | str, ...]
    """Of its dimensions; the same word stands for the same size in all arrays of the file."""
    dtype: type[np.generic] = np.float64
    finite: bool = True
    """False: infinity is allowed, NaN never."""


Layout = Mapping[str, Kind]


def written(version: int, layout: Layout, arrays: Mapping[str, Any]) -> bytes:
    """The file; ``arrays`` are brought to the types of the layout."""
    content = {name: np.ascontiguousarray(arrays[name], dtype=kind.dtype) for name, kind in layout.items()}
    return bytes(save({VERSION: np.array([version], np.int64), **content}))


def read(
    data: bytes, what: str, *, version: int, most_bytes: int, layouts: tuple[Layout, ...]
) -> dict[str, NDArray[Any]]:
    """The arrays of a file that has exactly the names of one of the layouts.

    Args:
        what: names the content in messages, as in "the deferral score".
        most_bytes: a larger file is refused unread.

    Raises MeshError MODEL_CORRUPT with what was found.
    """
    if len(data) > most_bytes:
        raise corrupt(what, f"the file has {len(data)} bytes, at most {most_bytes} are read")
    try:
        arrays: dict[str, NDArray[Any]] = dict(load(bytes(data)))
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError, ImportError, ArithmeticError) as error:
        raise corrupt(what, "this is no safetensors file of known types") from error
    found = arrays.pop(VERSION, None)
    if found is None or found.dtype != np.int64 or found.shape != (1,):
        raise corrupt(what, "it has no version")
    if int(found[0]) != version:
        raise corrupt(what, f"its version is {int(found[0])}, expected {version}; update splitmesh")
    layout = next((one for one in layouts if one.keys() == arrays.keys()), None)
    if layout is None:
        raise corrupt(what, f"it holds {', '.join(sorted(arrays)) or 'nothing'}, which is not what was expected")
    sizes: dict[str, int] = {}
    for name, kind in layout.items():
        _check(what, name, arrays[name], kind, sizes)
    return arrays


def corrupt(what: str, problem: str) -> MeshError:
    """MODEL_CORRUPT with one sentence."""
    return MeshError(Reason.MODEL_CORRUPT, f"{what} cannot be read: {problem}")


def _check(what: str, name: str, array: NDArray[Any], kind: Kind, sizes: dict[str, int]) -> None:
    if array.dtype != kind.dtype:
        raise corrupt(what, f"{name} is {array.dtype.name}, expected {np.dtype(kind.dtype).name}")
    fits = array.ndim == len(kind.sizes)
    for size, expected in zip(array.shape, kind.sizes, strict=False):
        known = sizes.setdefault(expected, size) if isinstance(expected, str) else expected
        fits &= size == known
    if not fits:
        shape = [sizes.get(one, one) if isinstance(one, str) else one for one in kind.sizes]
        raise corrupt(what, f"{name} has shape {list(array.shape)}, expected {shape}")
    if array.dtype.kind == "f" and not (np.isfinite(array) | (~np.isnan(array) & (not kind.finite))).all():
        raise corrupt(what, f"{name} holds a value that is not finite")
