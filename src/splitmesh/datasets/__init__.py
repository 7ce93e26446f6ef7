"""Datasets: manifests, divisions, statistics, files of other tools. Knows no network."""
