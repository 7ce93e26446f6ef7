"""A .pt2 is read only when it is data: each way to make torch run something is refused before torch sees the file."""

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from splitmesh.convert.pt2_archive import require_data_only
from splitmesh.errors import MeshError
from tests.support.torch_programs import SIDE, save_program, small_net

Edit = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_program(small_net(), tmp_path_factory.mktemp("pt2") / "net.pt2", (2, 1, SIDE, SIDE), varying=True)


def edited(program: Path, target: Path, ending: str = "", edit: Edit | None = None, **members: str) -> Path:
    """A copy with one JSON member edited and others added."""
    with zipfile.ZipFile(program) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            content = old.read(info)
            if edit is not None and info.filename.endswith(ending):
                document = json.loads(content)
                edit(document)
                content = json.dumps(document).encode()
            new.writestr(info.filename, content)
        for name, text in members.items():
            new.writestr(f"net/{name}", text)
    return target


def _operator(document: dict[str, Any]) -> None:
    document["graph_module"]["graph"]["nodes"][0]["target"] = "torch.os.system"


def _inner_operator(document: dict[str, Any]) -> None:
    document["graph_module"]["graph"]["nodes"][0]["inputs"].append({"as_graph": {"target": "_operator.methodcaller"}})


def _size(text: str) -> Edit:
    def edit(document: dict[str, Any]) -> None:
        values = document["graph_module"]["graph"]["tensor_values"]
        values["x"]["sizes"][0] = {"as_expr": {"expr_str": text, "hint": None}}

    return edit


def _name(document: dict[str, Any]) -> None:
    document["graph_module"]["graph"]["inputs"][0]["as_tensor"]["name"] = "x=print('run')"


def _key(document: dict[str, Any]) -> None:
    document["graph_module"]["graph"]["tensor_values"]["x\nimport os"] = {}


def _tree(document: dict[str, Any]) -> None:
    signature = document["graph_module"]["module_call_graph"][0]["signature"]
    signature["in_spec"] = json.dumps([1, {"type": "os.Thing", "context": "null", "children_spec": []}])


def _enum(document: dict[str, Any]) -> None:
    signature = document["graph_module"]["module_call_graph"][0]["signature"]
    keys = json.dumps([{"__enum__": True, "fqn": "antigravity:X"}])
    signature["in_spec"] = json.dumps([1, {"type": "builtins.dict", "context": keys, "children_spec": []}])


def _pickled(document: dict[str, Any]) -> None:
    next(iter(document["config"].values()))["use_pickle"] = True


EDITS: dict[str, tuple[str, Edit]] = {
    "operator 'torch.os.system'": ("models/model.json", _operator),
    r"operator '_operator\.methodcaller'": ("models/model.json", _inner_operator),
    "the size ": ("models/model.json", _size("__import__('os').system('true')")),
    r"the size \"Symbol": ("models/model.json", _size("Symbol('x y')")),
    "the size 'lambda": ("models/model.json", _size("lambda: 1")),
    'the name "x=print': ("models/model.json", _name),
    "the name 'x.nimport": ("models/model.json", _key),
    "the structure .*os.Thing": ("models/model.json", _tree),
    "the structure .*antigravity": ("models/model.json", _enum),
    "a pickled tensor": ("model_weights_config.json", _pickled),
}


def test_what_torch_saves_passes(program: Path) -> None:
    require_data_only(program)


@pytest.mark.parametrize("complaint", EDITS)
def test_each_way_to_run_something_is_refused(program: Path, tmp_path: Path, complaint: str) -> None:
    ending, edit = EDITS[complaint]
    with pytest.raises(MeshError, match=complaint):
        require_data_only(edited(program, tmp_path / "bad.pt2", ending, edit))


@pytest.mark.parametrize(
    "member",
    ["data/aotinductor/model/code.so", "data/constants/custom_obj_0", "data/constants/opaque_obj_0", "extra/x", "x.py"],
)
def test_members_that_are_code_or_objects_are_refused(program: Path, tmp_path: Path, member: str) -> None:
    with pytest.raises(MeshError, match="member"):
        require_data_only(edited(program, tmp_path / "bad.pt2", **{member: "x"}))


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_cut_off_file_is_refused(program: Path, tmp_path: Path, share: float) -> None:
    bad = tmp_path / "bad.pt2"
    bad.write_bytes(program.read_bytes()[: int(program.stat().st_size * share)])
    with pytest.raises(MeshError, match="damaged"):
        require_data_only(bad)


def test_after_the_ban_tensors_load_and_objects_do_not(tmp_path: Path) -> None:
    script = """
import collections, pickle, sys
from splitmesh.convert.pt2_archive import forbid_unpickling
content = pickle.dumps(collections.Counter("abc"))
forbid_unpickling()
import torch
torch.save((torch.ones(2),), sys.argv[1])
print(torch.load(sys.argv[1], weights_only=False))
try:
    pickle.loads(content)
except Exception as error:
    print(error)
"""
    ended = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "x.pt")], capture_output=True, text=True, check=True
    )
    tensors, refusal = ended.stdout.splitlines()
    assert tensors == "(tensor([1., 1.]),)"
    assert "pickled objects" in refusal
