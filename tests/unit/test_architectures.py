"""Networks as torch's current exporter writes them: the ones of the benchmarks whose structure is most unlike a chain."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from benchmarks import architectures
from tests.unit.test_model_split import check_every_cut


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(architectures, "CACHE", tmp_path)


@pytest.mark.parametrize(("name", "fewest"), [("siamese", 50), ("branching", 3), ("deeplab", 25)])
def test_every_cut_of_an_architecture_equals_the_whole(name: str, fewest: int) -> None:
    net = onnx.load_model_from_string(architectures.build(name, width=0.125, side=32))
    assert check_every_cut(net) >= fewest


def test_a_network_is_exported_once_and_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    first = architectures.build("autoencoder", width=0.125, side=32)
    file = next(tmp_path.iterdir())
    written = file.stat().st_mtime_ns
    assert architectures.build("autoencoder", width=0.125, side=32) == first
    assert file.stat().st_mtime_ns == written
    assert architectures.build("autoencoder", width=0.125, side=32, seed=1) != first
