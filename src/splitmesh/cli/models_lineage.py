"""``splitmesh models lineage``: what a version came from, across models and datasets, down to where it began."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.tree import Tree

from splitmesh.cli.connect import channels, find_version, registry_of
from splitmesh.cli.models_shown import time_text
from splitmesh.cli.output import PIPE_WIDTH, JsonOption, run, show_json
from splitmesh.client.registry import RegistryClient, VersionInfo
from splitmesh.errors import MeshError, Reason

MAX_VERSIONS = 200
"""Most versions that are asked for; the rest is counted."""
SHORT = {"created_by": "made by", "code_version": "code"}
GONE = (Reason.MODEL_NOT_FOUND, Reason.VERSION_NOT_FOUND)


@dataclass(slots=True)
class Ancestor:
    """A version, or a dataset's, and what it came from."""

    kind: str
    """``version`` or ``dataset``."""
    name: str
    """``joints:3``."""
    relation: str = ""
    """To the one above: ``parent``, ``model``, or the role of a dataset."""
    facts: dict[str, object] = field(default_factory=dict)
    """What is known of how it was made, as values; what is not known is left out."""
    note: str = ""
    """Why it is not followed: it is gone, is shown elsewhere in the tree, or there are too many."""
    parents: list[Ancestor] = field(default_factory=list)


def lineage(
    model: Annotated[str, typer.Argument(help="NAME, NAME:VERSION or NAME@ALIAS.")], json: JsonOption = False
) -> None:
    """Show the tree of versions and datasets that a version was made from."""

    async def ask() -> Ancestor:
        async with channels() as opened:
            registry = registry_of(opened)
            return await Ancestry(registry).of(await find_version(registry, model))

    root = run(ask())
    if json:
        show_json(root)
        return
    tree = Tree(_line(root))
    _grow(tree, root)
    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(tree)


class Ancestry:
    """Walks from a version to its roots. A version that comes twice is followed once, so no circle can hold it up."""

    def __init__(self, registry: RegistryClient) -> None:
        self._registry = registry
        self._seen: set[str] = set()

    async def of(self, version: VersionInfo) -> Ancestor:
        """The tree above ``version``, breadth first, at most :data:`MAX_VERSIONS` versions."""
        root = _ancestor(version)
        self._seen = {root.name}
        waiting = list(self._above(root, version))
        while waiting:
            below, relation, model, number = waiting.pop(0)
            found = Ancestor("version", f"{model}:{number}", relation)
            below.parents.append(found)
            parent = await self._fetch(found, model, number)
            if parent is not None:
                known = _ancestor(parent)
                found.facts, found.parents = known.facts, known.parents
                waiting += self._above(found, parent)
        return root

    async def _fetch(self, found: Ancestor, model: str, number: int) -> VersionInfo | None:
        if found.name in self._seen:
            found.note = "shown elsewhere"
            return None
        if len(self._seen) >= MAX_VERSIONS:
            found.note = f"not followed: more than {MAX_VERSIONS} versions"
            return None
        self._seen.add(found.name)
        try:
            return await self._registry.get_version(model, number)
        except MeshError as error:
            if error.reason not in GONE:
                raise
            found.note = "deleted since"
            return None

    def _above(self, below: Ancestor, version: VersionInfo) -> Iterator[tuple[Ancestor, str, str, int]]:
        if version.parent:
            yield below, "parent", version.model, version.parent
        for one in version.lineage.parents:
            yield below, "model", one.model, one.version


def _ancestor(version: VersionInfo) -> Ancestor:
    made = version.lineage
    facts = {
        "created_by": version.created_by,
        "create_time": version.create_time,
        "description": version.description,
        "task": made.task,
        "code_version": made.code_version,
        "recipe_sha256": made.recipe_sha256,
        "seeds": made.seeds,
        "metrics": dict(sorted(made.metrics.items())),
    }
    data = [
        Ancestor("dataset", f"{one.dataset}:{one.version}", one.role, {"sha256": one.sha256}) for one in made.datasets
    ]
    name = f"{version.model}:{version.version}"
    return Ancestor("version", name, facts={key: value for key, value in facts.items() if value}, parents=data)


def _grow(tree: Tree, node: Ancestor) -> None:
    for parent in node.parents:
        _grow(tree.add(_line(parent)), parent)


def _line(node: Ancestor) -> str:
    head = f"{node.relation}: {node.name}" if node.relation else node.name
    facts = ", ".join(words for name, value in node.facts.items() for words in _words(name, value))
    return escape("  ".join(filter(None, (head, facts, f"({node.note})" if node.note else ""))))


def _words(name: str, value: object) -> Iterator[str]:
    """A fact in short; descriptions are for ``models show``."""
    if isinstance(value, datetime):
        yield f"at {time_text(value)} UTC"
    elif isinstance(value, dict):
        yield from (f"{metric} {figure:g}" for metric, figure in value.items())
    elif isinstance(value, tuple):
        yield f"{name} {', '.join(map(str, value))}"
    elif name.endswith("sha256"):
        yield f"{name.removesuffix('_sha256')} {str(value)[:16]}"
    elif name != "description":
        yield f"{SHORT.get(name, name)} {value}"
