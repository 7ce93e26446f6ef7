"""The SDK. What is listed here is public and stays; everything else may change.

Camera gateways use :class:`Mesh` or :class:`SyncMesh`; docs/sdk.md shows how. Operators and services use the clients of the
control plane, which find their service through ``splitmesh.kernel.channels.Channels``.
"""

from splitmesh.client.answers import Answer, AnsweredBy, FrameFailure, Label, Routing, StreamCounts, Timings
from splitmesh.client.mesh import Mesh
from splitmesh.client.stream import Stream
from splitmesh.client.sync import SyncMesh, SyncStream
from splitmesh.errors import MeshError, Reason
from splitmesh.routing.gate import Why

__all__ = [
    "Answer",
    "AnsweredBy",
    "FrameFailure",
    "Label",
    "Mesh",
    "MeshError",
    "Reason",
    "Routing",
    "Stream",
    "StreamCounts",
    "SyncMesh",
    "SyncStream",
    "Timings",
    "Why",
]
