"""A version into an MLflow registry: a run with what it was made of, its files, and a model version with tags and aliases.

The model version is made last, of a run that is complete, and known again by the digest of its record: exporting a second time
goes on with the run that was begun and makes nothing twice. Only where the extra ``mlflow`` is installed; speaks HTTP to the
server and nothing else, and switches MLflow's own usage reports off.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

# Before MLflow is imported. Without them it reports usage, prints to standard output, and asks an absent server for minutes.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from requests.exceptions import RequestException

from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.export.record import VersionRecord
from splitmesh.model.manifest import MANIFEST, Manifest
from splitmesh.model.segments import TensorInfo

FOLDER = "model"
"""Of the run's artefacts."""
MLMODEL = "MLmodel"

DIGEST = "splitmesh.digest"
"""Tag by which a version is known again: of everything that cannot change about it."""
BATCH = 100
"""Most tags, and most parameters, that MLflow takes at once."""
MAX_TEXT_CHARS = 4500
"""Of a tag or a parameter; MLflow takes 5,000 and more."""

_USERINFO = re.compile(r"(?<=://)[^/?#\s]*@")
_METRIC = re.compile(r"[^A-Za-z0-9_\-. /]")
_ALIAS = re.compile(r"(?!v\d+$|latest$)[A-Za-z0-9_-]+")
_REFUSED = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED", "UNAUTHENTICATED")


@dataclass(frozen=True, slots=True)
class MlflowVersion:
    """Where a version is in MLflow."""

    model: str
    version: int
    mlflow_model: str
    mlflow_version: str
    run_id: str
    aliases: tuple[str, ...]
    """Those set there; a name that MLflow does not take is left out."""
    created: bool
    """False: it was there already."""


def export_to_mlflow(uri: str, record: VersionRecord, folder: Path) -> MlflowVersion:
    """Register a version; blocks for as long as the upload takes.

    Args:
        uri: of the server, ``http://`` or ``https://``.
        record: the version.
        folder: its artefacts and its record, verified.

    Raises:
        MeshError: FIELD_INVALID, the address is none or MLflow refuses; SERVICE_UNAVAILABLE, no answer, or a file of the
            folder cannot be read. No message holds what the address says of a user and a password.
    """
    if not uri.startswith(("http://", "https://")):
        told = without_secrets(uri)[:200]
        raise field_error("mlflow", f"{told!r} is no address of an MLflow server, such as http://mlflow:5000")
    with _mesh_errors(uri, folder):
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        digest = hashlib.sha256(replace(record, signatures=(), aliases=()).to_json()).hexdigest()
        _require_model(client, record.model)
        found = _version(client, record.model, digest)
        created = found is None
        if found is None:
            run = _run(client, record, digest)
            client.log_artifacts(run.info.run_id, str(folder), FOLDER)
            client.log_text(run.info.run_id, _mlmodel(record, folder, run.info.run_id), f"{FOLDER}/{MLMODEL}")
            client.set_terminated(run.info.run_id)
            found = client.create_model_version(
                record.model,
                f"runs:/{run.info.run_id}/{FOLDER}",
                run.info.run_id,
                tags=_tags(record, digest),
                description=record.description or None,
            )
        aliases = tuple(alias for alias in record.aliases if _ALIAS.fullmatch(alias))
        for alias in aliases:
            client.set_registered_model_alias(record.model, alias, found.version)
    return MlflowVersion(
        record.model, record.version, record.model, str(found.version), found.run_id or "", aliases, created
    )


def _require_model(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name, tags={"splitmesh.model": name})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _version(client: MlflowClient, name: str, digest: str) -> ModelVersion | None:
    """The one with this digest, as far as it is there."""
    found = client.search_model_versions(f"name = '{name}' and tag.`{DIGEST}` = '{digest}'", max_results=1)
    return next(iter(found), None)


def _run(client: MlflowClient, record: VersionRecord, digest: str) -> Run:
    """The run of this version, with what it was made of; an export that was cut off left it."""
    name = f"splitmesh/{record.model}"
    known = client.get_experiment_by_name(name)
    experiment = known.experiment_id if known is not None else _experiment(client, name)
    runs = client.search_runs([experiment], f"tags.`{DIGEST}` = '{digest}'", max_results=1)
    made_ms = int(record.create_time.timestamp() * 1000)
    run = (
        runs[0]
        if runs
        else client.create_run(experiment, made_ms, {DIGEST: digest}, f"{record.model}-{record.version}")
    )
    metrics = [Metric(_METRIC.sub("_", n), v, made_ms, 0) for n, v in sorted(record.lineage.metrics.items())]
    params = [Param(name, text) for name, text in _params(record).items()]
    tags = [RunTag(name, text) for name, text in _tags(record, digest).items()]
    for at in range(0, max(len(metrics), len(params), len(tags)), BATCH):
        few = slice(at, at + BATCH)
        client.log_batch(run.info.run_id, metrics=metrics[few], params=params[few], tags=tags[few])
    return run


def _experiment(client: MlflowClient, name: str) -> str:
    try:
        return client.create_experiment(name)
    except MlflowException:  # somebody else made it meanwhile
        known = client.get_experiment_by_name(name)
        if known is None:
            raise
        return known.experiment_id


def _params(record: VersionRecord) -> dict[str, str]:
    made = record.lineage
    found = {
        "parent": str(record.parent or ""),
        "parents": ", ".join(f"{one.model}:{one.version}" for one in made.parents),
        "datasets": ", ".join(f"{one.role}={one.dataset}:{one.version}@{one.sha256}" for one in made.datasets),
        "task": made.task,
        "code_version": made.code_version,
        "recipe_sha256": made.recipe_sha256,
        "seeds": ", ".join(map(str, made.seeds)),
    }
    return {name: text[:MAX_TEXT_CHARS] for name, text in found.items() if text}


def _tags(record: VersionRecord, digest: str) -> dict[str, str]:
    found = {
        DIGEST: digest,
        "splitmesh.model": record.model,
        "splitmesh.version": str(record.version),
        "splitmesh.created_by": record.created_by,
        "splitmesh.signed_by": ",".join(_key_ids(record)),
        **{f"splitmesh.sha256.{name}": one.sha256 for name, one in record.artifacts.items()},
    }
    return {name: text[:MAX_TEXT_CHARS] for name, text in found.items() if text}


def _key_ids(record: VersionRecord) -> list[str]:
    from splitmesh.trust.envelope import Envelope

    return [one.key_id for envelope in record.signatures for one in Envelope.from_json(envelope).signatures]


def _mlmodel(record: VersionRecord, folder: Path, run_id: str) -> str:
    """MLflow's own description of a model, whose flavour is ONNX; JSON, which is YAML too."""
    manifest = Manifest.from_json((folder / MANIFEST).read_bytes())
    return json.dumps(
        {
            "artifact_path": FOLDER,
            "run_id": run_id,
            "utc_time_created": record.create_time.strftime("%Y-%m-%d %H:%M:%S.%f"),
            "flavors": {"onnx": {"data": manifest.whole.artifact, "code": None, "providers": ["CPUExecutionProvider"]}},
            "signature": {
                "inputs": json.dumps([_tensor(one) for one in manifest.whole.inputs]),
                "outputs": json.dumps([_tensor(one) for one in manifest.whole.outputs]),
                "params": None,
            },
            "metadata": {"splitmesh": f"{record.model}:{record.version}"},
        },
        indent=2,
    )


def _tensor(one: TensorInfo) -> Mapping[str, object]:
    return {"name": one.name, "type": "tensor", "tensor-spec": {"dtype": one.dtype, "shape": list(one.shape)}}


def without_secrets(text: str) -> str:
    """A text with addresses in it, for people: without the user and the password that an address may hold."""
    return _USERINFO.sub("", text)


@contextmanager
def _mesh_errors(uri: str, folder: Path) -> Iterator[None]:
    place = without_secrets(uri)
    try:
        yield
    except MlflowException as error:
        first = without_secrets(str(error)).strip().partition("\n")[0][:500]
        if error.error_code in _REFUSED:
            raise field_error("mlflow", f"{place} refuses: {first}") from None
        raise MeshError(Reason.SERVICE_UNAVAILABLE, f"MLflow at {place}: {first}", retry_after_s=1.0) from None
    except (RequestException, ConnectionError, TimeoutError) as error:
        told = without_secrets(str(error))[:500]
        raise MeshError(Reason.SERVICE_UNAVAILABLE, f"MLflow at {place}: {told}", retry_after_s=1.0) from None
    except OSError as error:
        name = Path(error.filename).name if isinstance(error.filename, str) else folder.name
        raise MeshError(Reason.SERVICE_UNAVAILABLE, f"{name!r} cannot be read: {error.strerror or error}") from error
