"""Routing service: thresholds computed from a stated tolerance, pushed to heads; counts of what came of them."""
