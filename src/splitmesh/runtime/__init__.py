"""What executes a segment: a verified ONNX model in, named arrays to named arrays.

Pure: needs neither the onnx package nor torch nor gRPC, so that a MEC host installs a runtime and nothing else. Knows
nothing of heads, tails, exits or cuts: a segment is a model like any other.
"""

from __future__ import annotations

from collections.abc import Sequence

from splitmesh.runtime.ort import OrtSession, Provider
from splitmesh.runtime.providers import Compute, open_on
from splitmesh.runtime.session import Session

__all__ = ["Compute", "OrtSession", "Session", "open_session"]


def open_session(
    model: bytes,
    *,
    threads: int = 1,
    providers: Sequence[Provider] | None = None,
    max_run_s: float | None = None,
    optimise: bool = True,
    compute: Compute | None = None,
) -> Session:
    """A session on ``model`` with the default backend; see :class:`OrtSession` for the parameters and errors.

    With ``compute``, the best provider of this node for the model instead of ``providers``, checked against the CPU; see
    :func:`splitmesh.runtime.providers.open_on`.
    """
    if compute is not None:
        return open_on(model, compute, threads=threads, max_run_s=max_run_s)
    return OrtSession(model, threads=threads, providers=providers, max_run_s=max_run_s, optimise=optimise)
