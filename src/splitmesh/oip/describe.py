"""What a server and its models are, as ServerMetadata, ModelMetadata and ModelConfig say it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from splitmesh.api.oip.v2 import grpc_service_pb2 as pb
from splitmesh.api.oip.v2 import model_config_pb2 as config_pb
from splitmesh.model.manifest import Manifest, TensorInfo
from splitmesh.oip.backend import Served
from splitmesh.oip.datatypes import DATATYPE_OF, config_type

PLATFORM = "onnx"
SERVER = "splitmesh"
EXTENSIONS = ("classification", "model_configuration", "model_repository", "parameters", "statistics")
"""Of the protocol; shared memory, sequences, traces and logs are not among them."""


def takes_batches(manifest: Manifest) -> bool:
    """Whether requests may hold several samples: every input and output has an open first dimension."""
    return all(info.shape[:1] == (-1,) for info in (*manifest.whole.inputs, *manifest.whole.outputs))


def takes_pictures(manifest: Manifest) -> bool:
    """Whether an encoded picture, as BYTES, may stand for the model's input."""
    return manifest.preprocess is not None and len(manifest.whole.inputs) == 1


def server_metadata() -> pb.ServerMetadataResponse:
    """Of any node."""
    try:
        installed = version("splitmesh")
    except PackageNotFoundError:  # run from a checkout
        installed = "0"
    return pb.ServerMetadataResponse(name=SERVER, version=installed, extensions=EXTENSIONS)


def model_metadata(served: Served) -> pb.ModelMetadataResponse:
    """Inputs and outputs with their batch dimension."""
    whole = served.manifest.whole
    return pb.ModelMetadataResponse(
        name=served.model,
        versions=[str(served.version)],
        platform=PLATFORM,
        inputs=[_tensor(info) for info in whole.inputs],
        outputs=[_tensor(info) for info in whole.outputs],
    )


def model_config(served: Served) -> config_pb.ModelConfig:
    """What clients such as perf_analyzer read before they send anything."""
    manifest, whole = served.manifest, served.manifest.whole
    config = config_pb.ModelConfig(
        name=served.model,
        platform=PLATFORM,
        backend=served.backend,
        version_policy=config_pb.ModelVersionPolicy(
            specific=config_pb.ModelVersionPolicy.Specific(versions=[served.version])
        ),
        max_batch_size=served.max_batch,
        input=[
            config_pb.ModelInput(name=info.name, data_type=config_type(info.dtype), dims=_dims(info, served))
            for info in whole.inputs
        ],
        output=[
            config_pb.ModelOutput(
                name=info.name,
                data_type=config_type(info.dtype),
                dims=_dims(info, served),
                label_filename="labels" if info.name == manifest.class_output else "",
            )
            for info in whole.outputs
        ],
        instance_group=[
            config_pb.ModelInstanceGroup(name=served.model, count=1, kind=config_pb.ModelInstanceGroup.KIND_AUTO)
        ],
        default_model_filename=whole.artifact,
        dynamic_batching=config_pb.ModelDynamicBatching(
            max_queue_delay_microseconds=served.max_delay_us,
            priority_levels=served.priority_levels,
            default_priority_level=served.priority_levels,
            default_queue_policy=config_pb.ModelQueuePolicy(
                default_timeout_microseconds=served.default_timeout_us,
                allow_timeout_override=True,
                max_queue_size=served.max_queue,
            ),
        ),
        model_transaction_policy=config_pb.ModelTransactionPolicy(decoupled=False),
    )
    for name, text in {**served.facts, **_picture_facts(manifest)}.items():
        config.parameters[name].string_value = text
    return config


def _picture_facts(manifest: Manifest) -> dict[str, str]:
    """How pictures are sent: the preprocessing is the version's own."""
    if manifest.preprocess is None or not takes_pictures(manifest):
        return {}
    name = manifest.whole.inputs[0].name
    return {
        "encoded_pictures": f"input {name!r} also takes BYTES: one JPEG, PNG, WebP, BMP or TIFF file for each sample",
        "preprocess": manifest.preprocess.model_dump_json(),
    }


def _tensor(info: TensorInfo) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(name=info.name, datatype=DATATYPE_OF[info.dtype], shape=info.shape)


def _dims(info: TensorInfo, served: Served) -> Sequence[int]:
    return info.shape[1:] if served.max_batch else info.shape
