"""A segment opened in the way that a candidate says, be it in one piece or in several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from splitmesh.errors import field_error
from splitmesh.runtime.candidates import REFERENCE_BACKEND, Candidate
from splitmesh.runtime.ort import OrtSession
from splitmesh.runtime.ov import OpenVinoSession
from splitmesh.runtime.pieces import Pieces
from splitmesh.runtime.providers import Compute, Wish, open_on
from splitmesh.runtime.session import Session

_BY_DEVICE: dict[str, Wish] = {"cuda": "cuda", "tensorrt": "tensorrt"}


def open_candidate(
    pieces: Sequence[bytes],
    candidate: Candidate,
    *,
    lanes: int = 1,
    max_run_s: float | None = None,
    compute: Compute | None = None,
) -> Session:
    """The segment as one session, its pieces one after the other; see :func:`open_pieces`."""
    opened = open_pieces(pieces, candidate, lanes=lanes, max_run_s=max_run_s, compute=compute)
    return opened[0] if len(opened) == 1 else Pieces(opened)


def open_pieces(
    pieces: Sequence[bytes],
    candidate: Candidate,
    *,
    lanes: int = 1,
    max_run_s: float | None = None,
    compute: Compute | None = None,
) -> list[Session]:
    """A session for each piece; nothing stays open where one cannot be opened.

    Args:
        pieces: serialised models.
        candidate: how.
        lanes: runs computed at the same time.
        max_run_s: as the backends take it, for each piece.
        compute: what a GPU of onnxruntime is opened with.

    Raises what the backend's session raises, and FIELD_INVALID for a back end that nobody knows.
    """
    opened: list[Session] = []
    try:
        for piece in pieces:
            opened.append(_open(piece, candidate, lanes, max_run_s, compute or Compute()))
    except BaseException:
        for session in opened:
            session.close()
        raise
    return opened


def _open(model: bytes, candidate: Candidate, lanes: int, max_run_s: float | None, compute: Compute) -> Session:
    family, _, device = candidate.backend.partition("-")
    if candidate.backend == REFERENCE_BACKEND:
        return OrtSession(model, threads=candidate.threads, max_run_s=max_run_s)
    if family == "openvino":
        return OpenVinoSession(
            model,
            threads=candidate.threads,
            streams=lanes,
            precision=candidate.precision,
            device=device.upper(),
            max_run_s=max_run_s,
        )
    if family == "onnxruntime" and device in _BY_DEVICE:
        wish = _BY_DEVICE[device]
        return open_on(model, replace(compute, wish=wish), threads=candidate.threads, max_run_s=max_run_s)
    raise field_error("backend", f"{candidate.backend!r} is none that segments can be opened with")
