"""A PyTorch program that cannot be translated tells all of its operators that are in the way."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn

from splitmesh.convert.pytorch_parts import HINTS, untranslatable
from tests.support.torch_programs import save_program, small_net


class Solves(nn.Module):
    """Two operators without a translation, one of them twice."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        square = x @ x.transpose(1, 2)
        once = torch.linalg.eigvalsh(square) + torch.linalg.eigvalsh(square + 1)
        return torch.as_tensor(once + torch.linalg.solve(square, x).sum(2))


def exported(net: nn.Module, shape: tuple[int, ...]) -> torch.export.ExportedProgram:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(net.eval(), (torch.ones(shape),))


def found(net: nn.Module, shape: tuple[int, ...], failure: Exception) -> dict[str, tuple[int, str]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts = untranslatable(exported(net, shape), failure)
    assert all(one.problem and one.reason == "MODEL_OPERATOR_UNSUPPORTED" for one in parts)
    return {one.name: (one.count, one.hint) for one in parts}


def test_every_operator_without_a_translation_is_told_once() -> None:
    parts = found(Solves(), (2, 4, 4), RuntimeError("stopped"))
    assert {name: count for name, (count, _) in parts.items()} == {
        "aten._linalg_eigh": 2,
        "aten._linalg_solve_ex": 1,
    }
    assert parts["aten._linalg_eigh"][1] == HINTS["linalg"]


def test_the_operator_that_the_exporter_stopped_at_is_told_with_its_cause() -> None:
    failure = RuntimeError(
        "<class 'NotImplementedError'>: aten_histc with min == max (0.0) is not supported in this export path.\n"
        "Error when translating node %histc : call_function[target=torch.ops.aten.histc.default](args = (%x, 4))."
    )
    parts = found(small_net(), (2, 1, 16, 16), failure)
    assert parts.keys() == {"aten.histc"}
    assert parts["aten.histc"][1] == HINTS["histc"]


def test_a_program_that_is_translated_has_none(tmp_path: Path) -> None:
    save_program(small_net(), tmp_path / "net.pt2", (2, 1, 16, 16), varying=False)
    assert found(small_net(), (2, 1, 16, 16), RuntimeError("out of disk")) == {}
