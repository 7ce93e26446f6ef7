"""The Open Inference Protocol v2, which clients of Triton, KServe and OVMS speak, on any node that can answer.

Messages become plain values and back (``request``, ``response``, ``describe``, ``statistics``); ``servicer`` speaks gRPC for
whatever implements ``backend.Backend``. Knows models by their manifests; nothing of heads, tails, exits or links.
"""
