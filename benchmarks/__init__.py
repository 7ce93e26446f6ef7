"""Figures, each made by one command: ``python -m benchmarks.NAME [--quick]`` prints a table and writes build/bench/NAME.json."""
