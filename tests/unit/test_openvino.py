"""OpenVINO's own side: its types, its precisions, its silence, and what is compiled when."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys

import numpy as np
import pytest

from splitmesh.errors import MeshError, Reason
from splitmesh.runtime import ov
from splitmesh.runtime.graph_names import graph_names
from splitmesh.runtime.ov import OV_DTYPES, OpenVinoSession, load_openvino
from splitmesh.tensor import DTYPES
from tests.unit.onnx_nets import data, model, node, residual, value, weight


def test_the_type_table_names_every_dtype_that_may_cross_a_wire() -> None:
    assert set(OV_DTYPES.values()) == set(DTYPES)


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ov, "PACKAGE", "openvino_that_nobody_has")
    with pytest.raises(MeshError) as caught:
        load_openvino()
    assert caught.value.reason is Reason.EXTRA_MISSING
    assert "splitmesh[openvino]" in caught.value.message


def test_it_tells_nobody_that_it_is_used() -> None:
    script = (
        "import sys; from splitmesh.runtime.ov import OpenVinoSession; from splitmesh.runtime.providers import PROBE\n"
        "OpenVinoSession(PROBE).close()\n"
        "print(sorted(name for name, module in sys.modules.items() if 'openvino_telemetry' in name and module))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=100)
    assert done.stdout.strip() == "[]"


def test_the_runtime_package_does_not_load_it() -> None:
    script = "import sys, splitmesh.runtime.opening; print('openvino' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=100)
    assert done.stdout.strip() == "False"


def test_the_backend_does_not_need_the_onnx_package() -> None:
    tree = ast.parse(inspect.getsource(ov))
    imported = {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    imported |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert not [name for name in imported if name.split(".")[0] in ("onnx", "torch", "grpc")]


@pytest.mark.parametrize(("field", "wrong"), [("precision", "int4"), ("device", "TPU")])
def test_a_precision_or_device_that_is_not_there_is_refused(field: str, wrong: str) -> None:
    with pytest.raises(MeshError) as caught:
        OpenVinoSession(data(residual()), **{field: wrong})
    assert caught.value.reason is Reason.FIELD_INVALID
    assert wrong in caught.value.message


def test_fp32_is_computed_in_fp32_also_where_the_processor_would_rather_not() -> None:
    # By default OpenVINO computes in bf16 wherever a processor has it.
    rng = np.random.default_rng(0)
    net = model(
        [node("MatMul", "x w", "y")], [value("x", ["N", 512])], [value("y", ["N", 512])], [weight("w", 512, 512)]
    )
    x = rng.normal(size=(1, 512)).astype(np.float32)
    found = OpenVinoSession(data(net)).run({"x": x})["y"]
    right = OpenVinoSession(data(net), threads=2).run({"x": x})["y"]
    w = np.frombuffer(net.graph.initializer[0].raw_data, np.float32).reshape(512, 512)
    exact = x.astype(np.float64) @ w.astype(np.float64)
    assert np.abs(found - exact).max() / np.abs(exact).max() < 1e-5
    assert np.abs(right - exact).max() / np.abs(exact).max() < 1e-5


def test_only_the_sizes_that_come_are_compiled() -> None:
    session = OpenVinoSession(data(residual()))
    single = {"x": np.ones((1, 3, 8, 8), np.float32)}
    session.run(single)
    assert list(session._compiled) == [True]
    session.run({"x": np.ones((3, 3, 8, 8), np.float32)})
    session.run(single)
    assert sorted(session._compiled) == [False, True]


def test_names_of_inputs_and_outputs_are_read_without_values_that_the_file_holds() -> None:
    net = model(
        [node("Add", "b w", "s"), node("Mul", "s a", "p")],
        [value("b", ["N", 2]), value("w", [2]), value("a", ["N", 2])],
        [value("p", ["N", 2]), value("s", ["N", 2])],
        [weight("w", 2)],
    )
    assert graph_names(data(net)) == (("b", "a"), ("p", "s"))
    assert graph_names(b"\xff" * 40) == ((), ())
    assert graph_names(b"") == ((), ())
