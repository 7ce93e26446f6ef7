"""Hard, audited and disputed samples at their site: kept, labelled, exported and frozen into datasets.

The pictures stay where they were taken. Synchronous and pure: no gRPC, no telemetry, no clock and no randomness of its own; who
calls it from an event loop does so in a thread.
"""
