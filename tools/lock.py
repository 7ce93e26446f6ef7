"""Writes requirements/*.lock (`make lock`): every version, direct or not, that each way of installing splitmesh gets.

Asks pip to resolve and only writes down names and versions, so no index, mirror or host of this machine gets into a file.
The largest set is resolved first and the others within it: what two locks share has one version. Knows no hashes: the
same version of torch is another file on another machine (with or without CUDA).
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "requirements"

LOCKS = {
    "dev": ("edge", "dev"),
    "train": ("edge", "cloud", "video", "train"),
    "run": ("edge", "cloud", "video"),
    "cloud": ("cloud", "postgres", "s3"),
    "edge": ("edge",),
    "tensorflow": ("edge", "cloud", "tensorflow"),
}
"""Lock by name, and the extras it is for; the first holds all others but the last, which goes on top of any of them.

`edge` and `cloud` are what the images install.
"""

TORCH = "torch==2.13.0"

_OF_TORCH = re.compile(r"^(nvidia|cuda|triton)\b")
"""Brought along, and pinned, by the CUDA build of torch; a lock without them also installs where torch is a CPU build."""


def resolve(extras: Sequence[str], constraints: Sequence[str]) -> dict[str, str]:
    """Version by normalised name of everything that splitmesh with these extras needs, itself left out."""
    with tempfile.TemporaryDirectory() as scratch:
        limits, report = Path(scratch, "constraints.txt"), Path(scratch, "report.json")
        limits.write_text("\n".join(constraints) + "\n")
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "-qq"]
        command += ["--report", str(report), "--constraint", str(limits), f"{ROOT}[{','.join(extras)}]"]
        subprocess.run(command, check=True)
        found = [entry["metadata"] for entry in json.loads(report.read_text())["install"]]
    # The part of a version after "+" names a build (2.13.0+cpu); a pin without it accepts every build.
    versions = {normalised(one["name"]): one["version"].partition("+")[0] for one in found}
    return {name: versions[name] for name in sorted(versions) if name != "splitmesh" and not _OF_TORCH.match(name)}


def normalised(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def lock_text(extras: Sequence[str], versions: dict[str, str]) -> str:
    """The content of a lock."""
    header = f"# splitmesh[{','.join(extras)}], made by `make lock`; never edited.\n"
    return header + "".join(f"{name}=={version}\n" for name, version in versions.items())


def read_lock(path: Path) -> list[str]:
    """The pins of a lock; none when there is no such file."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return [line for line in lines if line and not line.startswith("#")]


def additional(pins: Sequence[str], others: Sequence[str]) -> list[str]:
    """Those of ``pins`` whose packages ``others`` do not pin."""
    known = {pin.partition("==")[0] for pin in others}
    return [pin for pin in pins if pin.partition("==")[0] not in known]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--upgrade", action="store_true", help="take the newest versions instead of keeping those locked"
    )
    upgrade = parser.parse_args().upgrade
    FOLDER.mkdir(exist_ok=True)
    largest = next(iter(LOCKS))
    constraints = [TORCH] if upgrade else [*read_lock(FOLDER / f"{largest}.lock"), TORCH]
    for name, extras in LOCKS.items():
        kept = [] if upgrade else read_lock(FOLDER / f"{name}.lock")
        versions = resolve(extras, [*constraints, *additional(kept, constraints)])
        (FOLDER / f"{name}.lock").write_text(lock_text(extras, versions))
        print(f"requirements/{name}.lock: {len(versions)} packages", flush=True)
        if name == largest:
            constraints = [f"{package}=={version}" for package, version in versions.items()]


if __name__ == "__main__":
    main()
