"""Recipes that make any ONNX vision model a good split model: smaller, small on the wire, with exits, leakage known.

Runs where the calibration pictures are: in the compressor's child process or in the one of ``splitmesh compress``. Knows
models, samples and folders; no network. torch is imported only below ``compress.train`` and only by the steps that need
it.
"""
