"""Compression service: makes what crosses a cut small and gives a split an exit, by recipe."""
