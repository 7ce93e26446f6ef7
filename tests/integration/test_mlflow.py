"""`splitmesh models export --mlflow` against a real MLflow server, in an environment of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from splitmesh.errors import MeshError, Reason
from splitmesh.export.files import digest_of, write_file
from splitmesh.export.record import RECORD, FileDigest, VersionRecord
from splitmesh.model.lineage import DatasetUse, Lineage, VersionName
from splitmesh.model.manifest import MANIFEST, WHOLE
from splitmesh.testing.parts import find_mlflow, require_part
from tests.integration.command_line import Ended, model_files, splitmesh_here
from tests.integration.models_desk import registry_process
from tests.integration.small_model import small_manifest, small_model

pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
from splitmesh.client.export_mlflow import DIGEST, export_to_mlflow

START_TRIES = 1200
POLL_S = 0.1
LINEAGE = Lineage(
    (VersionName("backbone", 4),),
    (DatasetUse("boards", 2, "ab" * 32, "train"),),
    "train-1",
    "c0ffee",
    "",
    (7,),
    {"acc": 0.97},
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    program = find_mlflow()
    require_part("mlflow", program is not None, "`make real-parts` installs it")
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(program), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/db.sqlite",
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(
            command, cwd=folder, env=os.environ | quiet, stdout=log, stderr=log, start_new_session=True
        ) as process,
    ):
        try:
            uri = f"http://127.0.0.1:{port}"
            _wait(process, uri, folder / "log")
            yield uri
        finally:
            os.killpg(process.pid, 15)  # its workers too, which it started


def _wait(process: subprocess.Popen[bytes], uri: str, log: Path) -> None:
    for _ in range(START_TRIES):
        try:
            with urllib.request.urlopen(f"{uri}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            assert process.poll() is None, log.read_text()[-2000:]
            time.sleep(POLL_S)
    raise AssertionError(log.read_text()[-2000:])


def ask(uri: str, path: str, **query: str) -> dict[str, Any]:
    """MLflow's REST API, as any other tool asks it."""
    words = "&".join(f"{name}={quote(text)}" for name, text in query.items())
    with urllib.request.urlopen(f"{uri}/api/2.0/mlflow/{path}?{words}", timeout=30) as answer:
        return dict(json.loads(answer.read()))


def version(folder: Path, number: int = 1, *, model: str = "stripes", aliases: tuple[str, ...] = ()) -> VersionRecord:
    folder.mkdir(exist_ok=True)
    (folder / WHOLE).write_bytes(small_model(note=str(number)))
    (folder / MANIFEST).write_text(small_manifest().to_json())
    digests = {name: FileDigest(*digest_of(folder / name)) for name in (WHOLE, MANIFEST)}
    made = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
    record = VersionRecord(model, number, number - 1, digests, "import by a@b", made, "first try", aliases, LINEAGE)
    write_file(folder / RECORD, record.to_json())
    return record


def test_a_version_is_registered_with_run_tags_aliases_and_files(server: str, tmp_path: Path) -> None:
    record = version(tmp_path / "in", 1, aliases=("a.b", "production"))
    made = export_to_mlflow(server, record, tmp_path / "in")
    assert (made.created, made.mlflow_version, made.aliases) == (True, "1", ("production",))
    found = ask(server, "model-versions/get", name="stripes", version="1")["model_version"]
    tags = {one["key"]: one["value"] for one in found["tags"]}
    assert (tags["splitmesh.model"], tags["splitmesh.version"]) == ("stripes", "1")
    assert tags[f"splitmesh.sha256.{WHOLE}"] == record.artifacts[WHOLE].sha256
    assert found["description"] == "first try"
    run = ask(server, "runs/get", run_id=found["run_id"])["run"]
    assert {one["key"]: one["value"] for one in run["data"]["params"]} == {
        "parents": "backbone:4",
        "datasets": f"train=boards:2@{'ab' * 32}",
        "task": "train-1",
        "code_version": "c0ffee",
        "seeds": "7",
    }
    assert [(one["key"], one["value"]) for one in run["data"]["metrics"]] == [("acc", 0.97)]
    assert run["info"]["status"] == "FINISHED"
    alias = ask(server, "registered-models/alias", name="stripes", alias="production")["model_version"]
    assert alias["version"] == "1"


def test_the_files_come_back_as_they_went(server: str, tmp_path: Path) -> None:
    record = version(tmp_path / "in", 1, model="files")
    made = export_to_mlflow(server, record, tmp_path / "in")
    from mlflow import MlflowClient

    back = Path(MlflowClient(tracking_uri=server).download_artifacts(made.run_id, "model", str(tmp_path)))
    for name, one in record.artifacts.items():
        assert digest_of(back / name) == (one.sha256, one.size_bytes)
    assert VersionRecord.from_json((back / RECORD).read_bytes()) == record
    described = json.loads((back / "MLmodel").read_text())
    assert described["flavors"]["onnx"]["data"] == WHOLE
    assert json.loads(described["signature"]["inputs"])[0]["tensor-spec"]["dtype"] == "float32"


def test_exporting_again_makes_nothing_twice_and_moves_aliases(server: str, tmp_path: Path) -> None:
    first = version(tmp_path / "one", 1, model="again")
    export_to_mlflow(server, first, tmp_path / "one")
    same = export_to_mlflow(server, replace(first, aliases=("canary",), signatures=()), tmp_path / "one")
    assert (same.created, same.mlflow_version) == (False, "1")
    second = version(tmp_path / "two", 2, model="again", aliases=("canary",))
    other = export_to_mlflow(server, second, tmp_path / "two")
    assert (other.created, other.mlflow_version) == (True, "2")
    found = ask(server, "model-versions/search", filter="name = 'again'")["model_versions"]
    assert len(found) == 2
    assert ask(server, "registered-models/alias", name="again", alias="canary")["model_version"]["version"] == "2"


def test_an_export_that_was_cut_off_is_gone_on_with_in_the_same_run(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    record = version(tmp_path / "in", 1, model="cut-off")

    def fails(*_: Any, **__: Any) -> None:
        raise ConnectionError("the cable")

    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, "log_artifacts", fails)
        with pytest.raises(MeshError) as caught:
            export_to_mlflow(server, record, tmp_path / "in")
    assert caught.value.reason is Reason.SERVICE_UNAVAILABLE
    assert "model_versions" not in ask(server, "model-versions/search", filter="name = 'cut-off'")
    made = export_to_mlflow(server, record, tmp_path / "in")
    client = MlflowClient(tracking_uri=server)
    experiment = client.get_experiment_by_name("splitmesh/cut-off")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert [one.info.run_id for one in runs] == [made.run_id]
    assert runs[0].data.tags[DIGEST]


def test_what_is_no_address_is_refused_at_once(tmp_path: Path) -> None:
    record = version(tmp_path / "in")
    with pytest.raises(MeshError, match="no address of an MLflow server"):
        export_to_mlflow("file:///tmp/x", record, tmp_path / "in")


def test_more_parts_than_tags_fit_into_one_call_are_all_told(server: str, tmp_path: Path) -> None:
    record = version(tmp_path / "in", 1, model="many")
    more = {f"part-{number:03}.onnx": FileDigest(f"{number:064x}", 1) for number in range(250)}
    metrics = {f"metric-{number}": 0.5 for number in range(250)}
    lineage = replace(record.lineage, metrics=metrics)
    record = replace(record, artifacts={**record.artifacts, **more}, lineage=lineage)
    made = export_to_mlflow(server, record, tmp_path / "in")
    data = ask(server, "runs/get", run_id=made.run_id)["run"]["data"]
    tags = {one["key"]: one["value"] for one in data["tags"]}
    assert all(tags[f"splitmesh.sha256.{name}"] == one.sha256 for name, one in record.artifacts.items())
    assert len(data["metrics"]) == 250
    found = ask(server, "model-versions/get", name="many", version="1")["model_version"]
    assert len(found["tags"]) == len(record.artifacts) + 4


def test_no_message_holds_the_password_of_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = version(tmp_path / "in")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for uri in ("http://ana:s3cret@127.0.0.1:1", "ftp://ana:s3cret@mlflow"):
        with pytest.raises(MeshError) as caught:
            export_to_mlflow(uri, record, tmp_path / "in")
        told = "".join(traceback.format_exception(caught.value))
        assert "s3cret" not in told
        assert uri.partition("@")[2] in caught.value.message


def test_a_file_that_cannot_be_read_is_not_blamed_on_the_server(server: str, tmp_path: Path) -> None:
    record = version(tmp_path / "in", model="unread")
    (tmp_path / "in" / MANIFEST).unlink()
    with pytest.raises(MeshError, match=f"'{MANIFEST}' cannot be read: No such file") as caught:
        export_to_mlflow(server, record, tmp_path / "in")
    assert caught.value.reason is Reason.SERVICE_UNAVAILABLE


def test_the_command_exports_a_version_of_a_registry_and_says_where_it_is(server: str, tmp_path: Path) -> None:
    model_files(tmp_path)
    with registry_process(tmp_path, {}) as address:

        def run(*arguments: object) -> Ended:
            return splitmesh_here("models", *arguments, STATIC_ADDRESSES=f"registry={address}")

        imported = run("import", tmp_path / "small.onnx", "--name", "cable", "--metric", "accuracy=0.9", "--json")
        run("promote", "cable:1", "--alias", "production")
        made = run("export", "cable@production", "--mlflow", server, "--json").json
        again = run("export", "cable:1", "--mlflow", server.replace("//", "//ana:s3cret@"))
    assert (made["mlflow_model"], made["mlflow_version"], made["created"]) == ("cable", "1", True)
    assert made["aliases"] == ["production"]
    found = ask(server, "model-versions/get", name="cable", version="1")["model_version"]
    tags = {one["key"]: one["value"] for one in found["tags"]}
    assert tags[f"splitmesh.sha256.{WHOLE}"] == imported.json["artifacts"][WHOLE]["sha256"]
    run_data = ask(server, "runs/get", run_id=made["run_id"])["run"]["data"]
    assert [(one["key"], one["value"]) for one in run_data["metrics"]] == [("accuracy", 0.9)]
    assert again.out == f"cable version 1 was there already: version 1 of cable in {server}\n"
    assert "s3cret" not in again.out + again.err
