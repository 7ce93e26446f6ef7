"""The ``splitmesh`` command: for operators and ML engineers. Every command has ``--json``.

Exit codes: 0 done; 1 refused, with a reason code on standard error, or some frame of a stream was; 2 wrong usage.
"""

from splitmesh.cli.app import main

__all__ = ["main"]
