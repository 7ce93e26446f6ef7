"""What every service shares: settings, errors on the wire, lifecycle, server, channels, discovery, telemetry.

The only place where protobuf messages become tensors and MeshErrors, and back. Knows no service.
"""
