"""Generates src/splitmesh/api from protos/ (`make protos`); `--check` fails when the committed stubs differ."""

from __future__ import annotations

import argparse
import filecmp
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path

from google.rpc import status_pb2
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
TARGET = ROOT / "src" / "splitmesh" / "api"
HEADER = '"""Generated from protos/ by tools/generate_stubs.py; never edited."""\n'


def includes() -> list[Path]:
    """Where protoc looks: our protos, the well-known types and google/rpc."""
    well_known = Path(protoc.__file__).parent / "_proto"
    google_rpc = Path(status_pb2.__file__).parents[2]
    return [PROTOS, well_known, google_rpc]


def generate(out: Path) -> None:
    """Write stubs, typing stubs and package markers for every proto below ``out``."""
    files = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    arguments = ["protoc", *(f"-I{folder}" for folder in includes())]
    scripts = Path(sysconfig.get_path("scripts"))
    arguments += [f"--plugin={name}={scripts / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
    arguments += [f"--{plugin}_out={out}" for plugin in ("python", "grpc_python", "mypy", "mypy_grpc")]
    if protoc.main(arguments + files):
        raise SystemExit("protoc failed")
    api = out / "splitmesh" / "api"
    for folder in [api, *(path for path in api.rglob("*") if path.is_dir())]:
        (folder / "__init__.py").write_text(HEADER)


def differences(made: Path, committed: Path) -> list[str]:
    """Relative paths that are missing, superfluous or different."""
    names = {path.relative_to(root) for root in (made, committed) for path in root.rglob("*.py*") if path.is_file()}
    names = {name for name in names if "__pycache__" not in name.parts}
    same = {
        name
        for name in names
        if (made / name).is_file()
        and (committed / name).is_file()
        and filecmp.cmp(made / name, committed / name, shallow=False)
    }
    return sorted(str(name) for name in names - same)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with the committed stubs instead of writing them")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        made = Path(folder) / "splitmesh" / "api"
        if check:
            stale = differences(made, TARGET)
            if stale:
                sys.exit("stubs differ from protos/, run `make protos`: " + ", ".join(stale))
            return
        shutil.rmtree(TARGET, ignore_errors=True)
        shutil.copytree(made, TARGET)


if __name__ == "__main__":
    main()
