"""What a model version was made from and how. Plain values; the registry keeps them, a signature covers them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version


@dataclass(frozen=True, slots=True)
class VersionName:
    """A version of a model."""

    model: str
    version: int


@dataclass(frozen=True, slots=True)
class DatasetUse:
    """A version of a dataset that was used."""

    dataset: str
    version: int
    sha256: str
    """Of its manifest."""
    role: str = "train"
    """``train``, ``val``, ``test``, ``calibration``, or a word of the task's."""


@dataclass(frozen=True, slots=True)
class Lineage:
    """Nothing of it can be changed once the version is made; all of it may be absent."""

    parents: tuple[VersionName, ...] = ()
    """Further versions, of other models or its own, beside the version's ``parent``."""
    datasets: tuple[DatasetUse, ...] = ()
    task: str = ""
    """Task or job that made it."""
    code_version: str = ""
    recipe_sha256: str = ""
    seeds: tuple[int, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """Canonical: the same text for the same lineage."""
        # A figure given as 1 comes back from the wire as 1.0: both are the same lineage.
        values = {**asdict(self), "metrics": {name: float(value) for name, value in self.metrics.items()}}
        return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)

    def datasets_as(self, role: str) -> tuple[DatasetUse, ...]:
        """Those used in this role."""
        return tuple(use for use in self.datasets if use.role == role)

    @property
    def sha256(self) -> str:
        """Of :meth:`to_json`; what a signature covers."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @classmethod
    def from_json(cls, text: str) -> Lineage:
        """The inverse of :meth:`to_json`, for text that this program wrote."""
        values = json.loads(text)
        values["parents"] = tuple(VersionName(**one) for one in values["parents"])
        values["datasets"] = tuple(DatasetUse(**one) for one in values["datasets"])
        return cls(**{**values, "seeds": tuple(values["seeds"])})


def program_version() -> str:
    """Of this program, as a lineage names the code."""
    try:
        return f"splitmesh {version('splitmesh')}"
    except PackageNotFoundError:
        return "splitmesh, from a checkout"
