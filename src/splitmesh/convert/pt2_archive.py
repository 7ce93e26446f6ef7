"""Is a .pt2 archive data only? Asked before torch reads it.

``torch.export.load`` unpickles custom objects and, as a fall-back, example inputs; resolves the name of every operator
from the module ``torch`` down (``torch.os.system`` would do); evaluates symbolic sizes as Python; and writes names into
source code that it compiles. So an archive may hold only the members listed here, operators of ``torch.ops`` and a few of
``operator`` and ``math``, sizes made of arithmetic on symbols, and names without quotes, brackets or spaces. With
:func:`forbid_unpickling` nothing is unpickled either.

Not covered: mistakes in torch's own operators and parsers. Convert in a process with limits, as `splitmesh models import` does.
"""

from __future__ import annotations

import ast
import json
import os
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from splitmesh.errors import MeshError, Reason

MAX_JSON_BYTES = 64 * 1024 * 1024

_MEMBER = re.compile(
    r"archive_format|archive_version|byteorder|version|\.format_version|\.storage_alignment"
    r"|\.data/(version|serialization_id)"
    r"|models/\w+\.json|data/sample_inputs/\w+\.pt"
    r"|data/weights/(weight_\d+|\w+_weights_config\.json)|data/constants/(tensor_\d+|\w+_constants_config\.json)"
)
_OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims|prim|quantized_decomposed|torchvision|higher_order)\.\w+(\.\w+)?"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|pow|eq|ne|lt|le|gt|ge|and_|or_|not_)"
    r"|math\.(ceil|floor|trunc|sqrt)"
    r"|torch\.sym_\w+"
)
_PLAIN = re.compile(r"[\w.:+-]*")
_TREE_TYPES = frozenset({None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"})
_FREE_TEXT = frozenset({"metadata", "guards_code"})
"""Kept apart by torch (stack traces), or thrown away after loading (guards)."""
_SYMBOLIC = re.compile(
    "Symbol|Integer|Float|Rational|Max|Min|Mod|Abs|FloorDiv|ModularIndexing|PythonMod|CleanDiv|CeilDiv|CeilToInt|FloorToInt"
    "|IntTrueDiv|FloatTrueDiv|PowByNatural|FloatPow|ToFloat|TruncToInt|TruncToFloat|RoundToInt|Identity|Where"
    "|Eq|Ne|Lt|Le|Gt|Ge|And|Or|Not|floor|ceiling|Add|Mul|Pow"
)
_ARITHMETIC = (
    ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.BinOp, ast.UnaryOp, ast.Compare,
    ast.operator, ast.unaryop, ast.cmpop,
)  # fmt: skip


def require_data_only(path: Path) -> None:
    """MeshError MODEL_CORRUPT, naming what was found, unless the archive is nothing but data."""
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                member = info.filename.partition("/")[2]
                if _MEMBER.fullmatch(member) is None:
                    raise _not_data(path, f"member {member!r}")
                if member.endswith(".json"):
                    _require_plain(path, member, _json(archive, info))
    except (zipfile.BadZipFile, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise MeshError(Reason.MODEL_CORRUPT, f"{path} is damaged: {error}") from error


def forbid_unpickling() -> None:
    """From now on, for good: this process may rebuild tensors, and any other unpickling raises."""
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"

    def refuse(event: str, _: tuple[Any, ...]) -> None:
        if event == "pickle.find_class":
            raise MeshError(Reason.MODEL_CORRUPT, "the model holds pickled objects, which may run code")

    sys.addaudithook(refuse)


def _json(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Any:
    if info.file_size > MAX_JSON_BYTES:
        raise MeshError(Reason.MODEL_TOO_LARGE, f"{info.filename} has {info.file_size} bytes; at most {MAX_JSON_BYTES}")
    return json.loads(archive.read(info))


def _require_plain(path: Path, member: str, content: Any) -> None:
    for key, value in _entries("", content):
        if key == "target" and not (isinstance(value, str) and _OPERATOR.fullmatch(value)):
            raise _not_data(path, f"operator {value!r}")
        if key == "use_pickle" and value:
            raise _not_data(path, f"a pickled tensor in {member}")
        if key == "expr_str" and not _is_arithmetic(value):
            raise _not_data(path, f"the size {value!r}")
        if key in ("in_spec", "out_spec") and not _is_tree(value):
            raise _not_data(path, f"the structure {value!r}")
        if key not in ("expr_str", "in_spec", "out_spec") and isinstance(value, str) and not _PLAIN.fullmatch(value):
            raise _not_data(path, f"the name {value!r}")


def _entries(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Every value with its key, depth first; a list's entries have the list's key, a key is also a value of its own."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield "", name
            if name not in _FREE_TEXT:
                yield from _entries(name, inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _entries(key, inner)
    else:
        yield key, value


def _is_arithmetic(text: Any) -> bool:
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, TypeError):
        return False
    calls = [node.func for node in nodes if isinstance(node, ast.Call)]
    return (
        all(isinstance(node, _ARITHMETIC) for node in nodes)
        and all(isinstance(call, ast.Name) and _SYMBOLIC.fullmatch(call.id) for call in calls)
        and all(
            str(node.value).isidentifier() or not isinstance(node.value, str)
            for node in nodes
            if isinstance(node, ast.Constant)
        )
    )


def _is_tree(text: Any) -> bool:
    """A description of nested arguments: known containers, and only names as their keys."""
    try:
        _, tree = json.loads(text)
        nodes = [tree]
        for node in nodes:
            keys = json.loads(node["context"] or "null")
            if node["type"] not in _TREE_TYPES or not all(isinstance(key, str) for key in keys or []):
                return False
            nodes.extend(node["children_spec"])
    except (KeyError, TypeError, ValueError):
        return False
    return True


def _not_data(path: Path, what: str) -> MeshError:
    return MeshError(
        Reason.MODEL_CORRUPT, f"{path} holds {what}, which is more than a graph and its tensors; it is not loaded"
    )
