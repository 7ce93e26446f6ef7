"""What every backend checks before it runs, so that a caller reads the same errors from each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from splitmesh.errors import MeshError, Reason
from splitmesh.tensor.spec import Array, TensorSpec, spec_of


def require_feeds(specs: Sequence[TensorSpec], feeds: Mapping[str, Array]) -> None:
    """Raise MeshError TENSOR_SHAPE_MISMATCH or TENSOR_DTYPE_MISMATCH unless the feeds are exactly what ``specs`` take."""
    expected = {spec.name for spec in specs}
    if feeds.keys() != expected:
        raise MeshError(
            Reason.TENSOR_SHAPE_MISMATCH,
            f"the tensors given are {sorted(feeds)}, the model takes {sorted(expected)}",
            metadata={
                "missing": ", ".join(sorted(expected - feeds.keys())),
                "unknown": ", ".join(sorted(feeds.keys() - expected)),
            },
        )
    for spec in specs:
        spec.require_match(spec_of(spec.name, feeds[spec.name]))
