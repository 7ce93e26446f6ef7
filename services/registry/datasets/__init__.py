"""Datasets in the registry."""
