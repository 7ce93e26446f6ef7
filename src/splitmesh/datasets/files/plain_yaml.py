"""YAML as plain data, from somebody who may mean harm: no tags of its own, no aliases, which could make it grow, no depth."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from splitmesh.errors import field_error

MAX_DEPTH = 16


def plain_yaml(file: Path, written: str, field: str = "source") -> Mapping[str, Any]:
    """A mapping, from YAML without aliases and tags of its own. Raises MeshError FIELD_INVALID of ``field``."""
    try:
        _check_plain(file, written, field)
        values = yaml.safe_load(written)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        detail = " ".join(str(error).split())[:200]
        raise field_error(field, f"{file.name!r} cannot be read as YAML: {detail}") from error
    if not isinstance(values, dict):
        raise field_error(field, f"{file.name!r} is no mapping of names to values")
    return values


def _check_plain(file: Path, written: str, field: str) -> None:
    depth = 0
    for event in yaml.parse(written, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise field_error(field, f"{file.name!r} has YAML aliases, which are not read")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise field_error(field, f"{file.name!r} is nested deeper than {MAX_DEPTH} levels")
