"""Messages of the datasets' contract to records, and back."""

from __future__ import annotations

import json

from services.registry.datasets.datasets import Wanted
from services.registry.metadata.records import Dataset, DatasetVersion
from splitmesh.api.datasets.v1 import datasets_pb2 as pb


def to_wanted(request: pb.CreateDatasetVersionRequest) -> Wanted:
    """What is to become a version."""
    return Wanted(
        dataset=request.dataset,
        manifest_sha256=request.manifest_sha256,
        parent=request.parent,
        created_by=request.created_by,
        description=request.description,
        request_id=request.request_id,
        signature=request.signature,
    )


def from_dataset_version(version: DatasetVersion, pictures_here: int | None = None) -> pb.DatasetVersion:
    """A version as a message; None: nobody counted."""
    summary = json.loads(version.summary)
    message = pb.DatasetVersion(
        dataset=version.dataset,
        version=version.version,
        manifest_sha256=version.manifest.sha256,
        manifest_bytes=version.manifest.size_bytes,
        parent=version.parent,
        task=summary["task"],
        classes=summary["classes"],
        sites=summary["sites"],
        pictures=summary["pictures"],
        picture_bytes=summary["picture_bytes"],
        pictures_here=pictures_here,
        splits=[pb.SplitCount(**split) for split in summary["splits"]],
        created_by=version.created_by,
        description=version.description,
        signatures=[signature.envelope for signature in version.signatures],
    )
    message.create_time.FromDatetime(version.create_time)
    return message


def from_dataset(dataset: Dataset) -> pb.Dataset:
    """A dataset as a message."""
    message = pb.Dataset(name=dataset.name, latest_version=dataset.latest_version)
    message.create_time.FromDatetime(dataset.create_time)
    return message
