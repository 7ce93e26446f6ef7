"""Versions outside of a registry: the record that lies beside pulled files, and OCI image layouts.

Reads and writes folders. Knows no registry and no network.
"""
