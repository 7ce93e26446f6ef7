"""The same ONNX model behind other servers, each the way its own documentation says: ``python -P NAME.py MODEL PORT`` (without
``-P`` this folder hides packages of the same names).

They run in virtual environments of their own and import nothing of this project, but for Ray Serve, which needs a proto.
"""
