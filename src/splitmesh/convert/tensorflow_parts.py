"""Which operators of a TensorFlow model tf2onnx has no translation for, read from what it logs: it tells them nowhere else.

tf2onnx logs ``Tensorflow op [NAME: TYPE] is not supported`` for each node (``tfonnx.tensorflow_onnx_mapping``) and then writes a
file that still holds the operator. Needs no TensorFlow itself.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

from splitmesh.errors import Reason
from splitmesh.model.unsupported import MAX_PLACES, Unsupported

LOGGER = "tf2onnx"
MAX_NODES = 20_000

_NODE = re.compile(r"Tensorflow op \[(?P<name>[^\]]*): (?P<type>[\w.]+)\] is not supported")
_FAILED = re.compile(r"Failed to convert node '(?P<name>[^']*)'(?:.*?OP=(?P<type>[\w.]+))?", re.DOTALL)
_COUNTS = re.compile(r"Unsupported ops: Counter\(\{(?P<counts>.*)\}\)")
_COUNT = re.compile(r"'(?P<type>[\w.]+)': (?P<count>\d+)")

HINT = "replace by a layer that tf2onnx translates (its support_status.md lists them), or do this outside of the model"
HINTS = {
    "Lookup": "tables belong outside of the model: give class names by --labels",
    "String": "works on text; keep what reads or writes text outside of the model",
    "Decode": "decodes pictures; a head does that itself: take it out and give --preprocess",
    "Random": "takes random numbers; export the model for inference",
    "TensorList": "comes from a loop over time steps; build the recurrent layer with unroll=True",
    "Map": "runs Python or a function per element; write it with ordinary layers",
}
"""By a part of the operator's name."""


@contextmanager
def unsupported_nodes(parts: list[Unsupported]) -> Iterator[None]:
    """Adds to ``parts`` what tf2onnx complains of inside the block, however the block ends."""
    heard = _Heard()
    logger = logging.getLogger(LOGGER)
    logger.addHandler(heard)
    try:
        yield
    finally:
        logger.removeHandler(heard)
        parts.extend(heard.parts())


def reaching_out(kind: str, names: list[str]) -> Unsupported:
    """An operator that would run Python or touch files, which no model from outside may."""
    hint = "it runs Python or touches files when the model is called; take it out before the model is saved"
    reason, problem = Reason.MODEL_OPERATOR_UNSUPPORTED.value, f"{kind} reaches out of the model"
    return Unsupported("operator", kind, len(names), tuple(names[:MAX_PLACES]), reason, problem, hint)


class _Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._nodes: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}
        self._kept = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps what names an operator."""
        text = record.getMessage()
        if (counts := _COUNTS.search(text)) is not None:
            self._counts.update({one["type"]: int(one["count"]) for one in _COUNT.finditer(counts["counts"])})
        for pattern in (_NODE, _FAILED):
            found = pattern.search(text)
            if found is not None and self._kept < MAX_NODES:
                self._kept += 1
                self._nodes.setdefault(found["type"] or "an operator", []).append(found["name"])

    def parts(self) -> list[Unsupported]:
        """One line per operator."""
        for kind in self._counts:
            self._nodes.setdefault(kind, [])
        return [self._part(kind, names) for kind, names in self._nodes.items()]

    def _part(self, kind: str, names: list[str]) -> Unsupported:
        hint = next((text for part, text in HINTS.items() if part in kind), HINT)
        count = max(len(names), self._counts.get(kind, 1))
        problem = f"tf2onnx has no translation for {kind}"
        places = tuple(name for name in names if name)[:MAX_PLACES]
        reason = Reason.MODEL_OPERATOR_UNSUPPORTED.value
        return Unsupported("operator", kind, count, places, reason, problem, hint)
