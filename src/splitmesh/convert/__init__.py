"""Models of other frameworks to ONNX: PyTorch exported programs, Keras, TensorFlow SavedModels, TFLite.

What a file is, is read from its content (`formats`); :func:`splitmesh.convert.work.examine` makes the ONNX file, compares both
on random inputs and reports all that stands in the way. It loads the framework, so callers run it in a child process. torch
and TensorFlow are optional and loaded only there.
Knows no registry and no network.
"""
