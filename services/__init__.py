"""The control plane: one gRPC service a folder, each run as ``python -m services.NAME``."""
