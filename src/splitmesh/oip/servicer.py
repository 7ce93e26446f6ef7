"""inference.GRPCInferenceService on gRPC: decode, call, encode. Requests and answers are lifted (``kernel/wire.py``)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from splitmesh.api.oip.v2 import grpc_service_pb2 as pb
from splitmesh.api.oip.v2 import grpc_service_pb2_grpc as pb_grpc
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.kernel.server import Binding
from splitmesh.kernel.streams import Drain
from splitmesh.kernel.wire import LargeFields
from splitmesh.oip.backend import Backend
from splitmesh.oip.describe import model_config, model_metadata, server_metadata
from splitmesh.oip.requests import Requests
from splitmesh.oip.stream import RequestStreams
from splitmesh.tensor.spec import TensorLimits

SERVICE = "inference.GRPCInferenceService"

REQUEST = LargeFields(pb.ModelInferRequest, "raw_input_contents")
RESPONSE = LargeFields(pb.ModelInferResponse, "raw_output_contents")
STREAM_RESPONSE = LargeFields(pb.ModelStreamInferResponse, "infer_response.raw_output_contents")


class OipServicer(pb_grpc.GRPCInferenceServiceServicer):
    """Serves any client of the protocol for one node.

    Args:
        backend: the node.
        limits: of tensors from outside.
        credit: requests that one stream may have unanswered; with so many the next is not read.
        drain: tells streams that the node is about to stop.
        in_order: answers of a stream keep the order of its requests.
    """

    def __init__(
        self, backend: Backend, *, limits: TensorLimits, credit: int, drain: Drain, in_order: bool = True
    ) -> None:
        self._backend = backend
        self._requests = Requests(backend, limits)
        self._streams = RequestStreams(self._requests, credit=credit, drain=drain, in_order=in_order)

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Any) -> pb.ServerLiveResponse:
        """The process answers."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Any) -> pb.ServerReadyResponse:
        """Every model that the node was told to serve can be asked."""
        return pb.ServerReadyResponse(ready=await self._backend.ready())

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Any) -> pb.ModelReadyResponse:
        """One model can be asked; a node that loads on demand loads it."""
        try:
            await self._backend.served(request.name, request.version)
        except MeshError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Any) -> pb.ServerMetadataResponse:
        """Name, version, extensions."""
        return server_metadata()

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Any) -> pb.ModelMetadataResponse:
        """Inputs and outputs."""
        return model_metadata(await self._backend.served(request.name, request.version))

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: Any) -> pb.ModelConfigResponse:
        """Batching and scheduling."""
        return pb.ModelConfigResponse(config=model_config(await self._backend.served(request.name, request.version)))

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        """Answers one request."""
        return await self._requests.answer(request, context.time_remaining())

    async def ModelStreamInfer(self, request_iterator: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        """Answers a stream of requests."""
        async with aclosing(self._streams.serve(aiter(request_iterator))) as responses:
            async for response in responses:
                yield response

    async def ModelStatistics(self, request: pb.ModelStatisticsRequest, context: Any) -> pb.ModelStatisticsResponse:
        """What requests took."""
        statistics = self._requests.statistics
        if not request.name:
            return pb.ModelStatisticsResponse(model_stats=statistics.messages(version=request.version))
        served = await self._backend.served(request.name, request.version)
        version = str(served.version) if request.version else ""
        return pb.ModelStatisticsResponse(model_stats=statistics.messages([served], served.model, version))

    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, context: Any) -> pb.RepositoryIndexResponse:
        """Every model."""
        return pb.RepositoryIndexResponse(
            models=[
                pb.RepositoryIndexResponse.ModelIndex(
                    name=one.model,
                    version=one.version,
                    state="READY" if one.ready else "UNAVAILABLE",
                    reason=one.reason,
                )
                for one in await self._backend.index()
                if one.ready or not request.ready
            ]
        )

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: Any
    ) -> pb.RepositoryModelLoadResponse:
        """Makes a model ready."""
        if request.parameters:
            raise field_error("parameters", "are not taken: models and their configuration come from the registry")
        await self._backend.load(request.model_name)
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: Any
    ) -> pb.RepositoryModelUnloadResponse:
        """Lets a model go."""
        await self._backend.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()

    async def SystemSharedMemoryStatus(
        self, request: pb.SystemSharedMemoryStatusRequest, context: Any
    ) -> pb.SystemSharedMemoryStatusResponse:
        """No regions."""
        return pb.SystemSharedMemoryStatusResponse()

    async def SystemSharedMemoryRegister(
        self, request: pb.SystemSharedMemoryRegisterRequest, context: Any
    ) -> pb.SystemSharedMemoryRegisterResponse:
        """UNIMPLEMENTED."""
        raise _absent("shared memory")

    async def SystemSharedMemoryUnregister(
        self, request: pb.SystemSharedMemoryUnregisterRequest, context: Any
    ) -> pb.SystemSharedMemoryUnregisterResponse:
        """Nothing to do."""
        return pb.SystemSharedMemoryUnregisterResponse()

    async def CudaSharedMemoryStatus(
        self, request: pb.CudaSharedMemoryStatusRequest, context: Any
    ) -> pb.CudaSharedMemoryStatusResponse:
        """No regions."""
        return pb.CudaSharedMemoryStatusResponse()

    async def CudaSharedMemoryRegister(
        self, request: pb.CudaSharedMemoryRegisterRequest, context: Any
    ) -> pb.CudaSharedMemoryRegisterResponse:
        """UNIMPLEMENTED."""
        raise _absent("shared memory of a GPU")

    async def CudaSharedMemoryUnregister(
        self, request: pb.CudaSharedMemoryUnregisterRequest, context: Any
    ) -> pb.CudaSharedMemoryUnregisterResponse:
        """Nothing to do."""
        return pb.CudaSharedMemoryUnregisterResponse()

    async def TraceSetting(self, request: pb.TraceSettingRequest, context: Any) -> pb.TraceSettingResponse:
        """UNIMPLEMENTED."""
        raise _absent("trace settings: traces go out by OpenTelemetry")

    async def LogSettings(self, request: pb.LogSettingsRequest, context: Any) -> pb.LogSettingsResponse:
        """UNIMPLEMENTED."""
        raise _absent("log settings: the level is a setting of the process")


def binding(servicer: OipServicer, *, serving_at_start: bool) -> Binding:
    """The service for a server; tensors cross without the copies of protobuf."""
    return Binding(
        SERVICE,
        lambda server: pb_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server),
        serving_at_start=serving_at_start,
        deserializers={"ModelInfer": REQUEST.parse, "ModelStreamInfer": REQUEST.parse},
        serializers={"ModelInfer": RESPONSE.serialize, "ModelStreamInfer": STREAM_RESPONSE.serialize},
    )


def _absent(what: str) -> MeshError:
    return MeshError(Reason.UNIMPLEMENTED, f"this server has no {what}")
