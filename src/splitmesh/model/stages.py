"""A head in pieces that run one after the other, so that it can stop at the first exit that is sure.

Cut with the same means as a model: a piece ends where an earlier exit sits. The pieces are made of the head before its
exits (an exit hangs on the tensor where its piece ends, so it would fall behind that cut); the exits are attached to the
pieces afterwards. Knows graphs and bytes, no samples and no thresholds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

from splitmesh.errors import MeshError, Reason
from splitmesh.model.chain import Chain, split_chain
from splitmesh.model.graph import Graph
from splitmesh.model.verify import Reference, compare
from splitmesh.tensor.spec import Array


def cut_stages(head: onnx.ModelProto, at: Sequence[str]) -> Chain:
    """The pieces of a head that ends in its wire tensors: piece k ends in the tensor ``at[k]``, the last one in the wire.

    Raises MeshError CUT_INVALID when a tensor does not divide the head by itself (a shortcut runs beside it, the wire
    carries something from before it), is the end of the head, or lies before the one named ahead of it;
    MODEL_SHAPE_UNKNOWN as a split does.
    """
    outputs = {entry.name for entry in head.graph.output}
    for name in at:
        if name in outputs:
            raise MeshError(
                Reason.CUT_INVALID, f"exit refused: {name!r} is what the head ends in; its exit is always there"
            )
    return split_chain(Graph(head), [[name] for name in at])


def verify_stages(head: bytes, stages: Sequence[bytes], feeds: Sequence[Mapping[str, Array]]) -> float:
    """The largest difference of any output of the head, exits included, as a share of its largest magnitude.

    MeshError SPLIT_NOT_EQUAL when the pieces, one after the other, do not give what the head gives; the same tolerances
    as for a split.
    """
    try:
        return compare(Reference(head, feeds), stages).max_abs_error
    except MeshError as error:
        if error.reason is not Reason.SPLIT_NOT_EQUAL:
            raise
        message = error.message.replace("head and tail do not equal the whole", "the stages do not equal the head")
        raise MeshError(Reason.SPLIT_NOT_EQUAL, message, metadata=error.metadata) from error
