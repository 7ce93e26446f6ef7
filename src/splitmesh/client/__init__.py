"""The SDK. What is listed here is public and stays; everything else may change.

Camera gateways use :class:`Mesh` or :class:`SyncMesh`. Operators and services use the clients of the control plane,
which find their service through ``splitmesh.kernel.channels.Channels``.
"""

from splitmesh.client.answers import Answer, AnsweredBy, FrameFailure, Label, Timings
from splitmesh.client.mesh import Mesh, SyncMesh
from splitmesh.errors import MeshError, Reason

__all__ = ["Answer", "AnsweredBy", "FrameFailure", "Label", "Mesh", "MeshError", "Reason", "SyncMesh", "Timings"]
