"""What executes a segment: a verified ONNX model in, named arrays to named arrays.

Pure: needs neither the onnx package nor torch nor gRPC, so that a MEC host installs a runtime and nothing else. Knows
nothing of heads, tails, exits or cuts: a segment is a model like any other.
"""

from __future__ import annotations

from collections.abc import Sequence

from splitmesh.runtime.ort import OrtSession
from splitmesh.runtime.session import Session

__all__ = ["OrtSession", "Session", "open_session"]


def open_session(
    model: bytes,
    *,
    threads: int = 1,
    providers: Sequence[str] | None = None,
    max_run_s: float | None = None,
    optimise: bool = True,
) -> Session:
    """A session on ``model`` with the default backend; see :class:`OrtSession` for the parameters and errors."""
    return OrtSession(model, threads=threads, providers=providers, max_run_s=max_run_s, optimise=optimise)
