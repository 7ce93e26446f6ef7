"""What versions that the services make say of where they come from: datasets behind their samples, seeds, figures."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from services.compressor import apply
from services.compressor.store import Request
from services.partitioner import partition
from splitmesh.client.registry import ArtifactRef, VersionInfo
from splitmesh.compress.child import Result
from splitmesh.compress.recipe import make_recipe, parse_step
from splitmesh.model.artifacts import split_bytes
from splitmesh.model.lineage import DatasetUse, Lineage, program_version
from splitmesh.model.manifest import CALIBRATION, SplitInfo
from tests.integration.small_model import CUT, small_model
from tests.unit.compression_reports import full_report

SEEN = DatasetUse("boards", 1, "a" * 64, "calibration")
TRAINED = DatasetUse("boards", 2, "b" * 64)
NOW = datetime(2026, 3, 1, tzinfo=UTC)


def source(*artifacts: str) -> VersionInfo:
    """Trained on one dataset, with samples of another."""
    refs = {name: ArtifactRef(name, "c" * 64, 1) for name in artifacts}
    made_from = Lineage(datasets=(TRAINED, SEEN), seeds=(9,), metrics={"accuracy": 0.9})
    return VersionInfo("m", 1, 0, refs, "import", "", (), NOW, made_from)


@pytest.fixture(scope="module")
def split() -> SplitInfo:
    made = split_bytes(small_model(), [CUT])[0].split
    assert made is not None
    return made


def test_a_split_names_the_datasets_behind_the_samples_that_go_on_with_it(split: SplitInfo) -> None:
    lineage = partition.lineage_of(source(CALIBRATION), split, None)
    assert (lineage.datasets, lineage.code_version) == ((SEEN,), program_version())
    assert lineage.metrics == {"max_abs_error": split.verification.max_abs_error}
    assert partition.lineage_of(source(), split, None).datasets == ()


def test_a_compression_names_the_datasets_behind_the_samples_that_it_used() -> None:
    def lineage_with(folder: str) -> Lineage:
        asked = Request(
            compression_id=f"compression-{'0' * 32}",
            model="m",
            version=1,
            recipe=recipe,
            calibration_folder=folder,
            create_time=NOW,
        )
        return apply.lineage_of(asked, Result({}, {}, full_report()), source(CALIBRATION))

    recipe = make_recipe([parse_step("int8-cut")], seed=5)
    lineage = lineage_with("")
    assert (lineage.datasets, lineage.seeds, lineage.recipe_sha256) == ((SEEN,), (5,), recipe.digest())
    assert lineage.metrics == full_report().figures()
    assert lineage_with("pictures-of-this-machine").datasets == ()
