"""The codec of a hop that is entropy coded: the manifest's word for it and the file of tables, held against each other.

Knows manifests and tables; both ends of a hop make their codec here, so that they mean the same by a rate.
"""

from __future__ import annotations

from splitmesh.errors import MeshError, Reason
from splitmesh.model.segments import Coding, Hop
from splitmesh.tensor.entropy import RangeCodec, Tables


def hop_codec(hop: Hop, coding: Coding, content: bytes) -> RangeCodec:
    """The codec of what crosses ``hop``. Takes a moment: the file is checked against this machine's library.

    Args:
        hop: of the version.
        coding: the hop's.
        content: of ``coding.artifact``.

    Raises MeshError MODEL_CORRUPT for a file that is damaged, is for other tensors or has other rates.
    """
    tables = Tables.from_bytes(content)
    stated = tuple((rate.channels, rate.step) for rate in coding.rates)
    if tables.rates != stated:
        raise MeshError(
            Reason.MODEL_CORRUPT,
            f"{coding.artifact} is for the rates {list(tables.rates)} (channels, step), the manifest names {list(stated)}",
        )
    return RangeCodec(tables, [tensor.spec() for tensor in hop.wire])
