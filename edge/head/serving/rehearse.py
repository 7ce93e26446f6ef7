"""One made-up frame through all that a version does here, before anybody's frame goes through it. Blocking."""

from __future__ import annotations

import numpy as np

from edge.head.active import ActiveModel
from edge.head.perceive import packed_for_tail
from edge.head.staged import run_head
from splitmesh.errors import MeshError, Reason
from splitmesh.tensor import DTYPES


def rehearse(active: ActiveModel, codec: str) -> None:
    """Computed to the cut and packed; ``codec`` packs where the version brings no coder of its own.

    A version with open dimensions is not rehearsed. Raises what a frame would raise, but TENSOR_NOT_FINITE: nobody promises that
    a picture of zeros is one that the model can tell anything of.
    """
    inputs = active.session.inputs
    if any(-1 in spec.shape[1:] for spec in inputs):
        return
    feeds = {spec.name: np.zeros([abs(dim) for dim in spec.shape], DTYPES[spec.dtype]) for spec in inputs}
    try:
        run = run_head(active.session, active.manifest, active.gate, feeds, camera="", escalate=True)
        if active.manifest.split is not None:
            packed_for_tail(active, run.outputs, codec)
    except MeshError as error:
        if error.reason is not Reason.TENSOR_NOT_FINITE:
            raise
