"""ONNX models as things that can be cut: graph, cuts, splits, exits, plans, manifests.

Pure: no gRPC, no services, no telemetry. ``manifest`` and ``preprocess`` need neither onnx nor torch, so that
the edge head can import them on a host that has neither.
"""
