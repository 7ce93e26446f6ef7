"""splitmesh: one vision model, run across factory edges and a cloud."""
