"""From what heads tell of their samples to drifts, what they tighten, and new thresholds."""
