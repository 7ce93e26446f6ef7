"""An agent that does what a test tells it to, over a real stream, and a fleet in this process for it to talk to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc

from services.fleet.app import build
from services.fleet.config import FleetSettings
from splitmesh.api.fleet.v1 import fleet_pb2 as pb
from splitmesh.api.fleet.v1 import fleet_pb2_grpc
from splitmesh.api.serving.v1 import serving_pb2
from splitmesh.errors import MeshError
from splitmesh.kernel.errors import from_rpc_error
from splitmesh.kernel.lifecycle import Host

WAIT_S = 20.0
KINDS = (pb.TASK_KIND_DEPLOY, pb.TASK_KIND_PROFILE, pb.TASK_KIND_COLLECT)


def hello(node: str = "edge-1", **fields: Any) -> pb.Hello:
    """A plausible one."""
    values = {
        "site": "hamburg",
        "line": "line-1",
        "boot_id": "boot-1",
        "agent_version": "0.1",
        "max_tasks": 1,
        **fields,
    }
    values.setdefault("capabilities", pb.Capabilities(cores=4, task_kinds=KINDS))
    return pb.Hello(node=node, **values)


class FakeAgent:
    """One stream of an agent; nothing is sent but what a test asks for."""

    def __init__(self, stub: Any) -> None:
        self.call = stub.Connect()
        self.welcome = pb.Welcome()
        self.seen: list[pb.ConnectResponse] = []
        """All that came and was not taken yet."""

    async def say(self, **message: Any) -> None:
        """One message; ``say(heartbeat=...)``."""
        async with asyncio.timeout(WAIT_S):
            await self.call.write(pb.ConnectRequest(**message))

    async def read(self) -> Any:
        """The next message; raises what the stream ends with."""
        try:
            async with asyncio.timeout(WAIT_S):
                found = await self.call.read()
                if found is grpc.aio.EOF:
                    code = await self.call.code()
                    if code is grpc.StatusCode.OK:
                        raise EOFError
                    # Raises with what the server said.
                    await self.call.__aiter__().__anext__()
                return found
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    async def expect(self, kind: str) -> Any:
        """The next message of a kind; those before it are kept in ``seen``."""
        for index, one in enumerate(self.seen):
            if one.WhichOneof("message") == kind:
                return getattr(self.seen.pop(index), kind)
        while (found := await self.read()).WhichOneof("message") != kind:
            self.seen.append(found)
        return getattr(found, kind)

    async def quiet(self) -> list[str]:
        """Kinds of all that came before an answer that the fleet gives now: the acknowledgement of an unknown task's end."""
        mark = f"mark-{id(self)}"
        await self.update(pb.Task(id=mark, attempt=1), pb.TASK_STATE_DONE)
        while (found := await self.read()).acknowledged.task_id != mark:
            self.seen.append(found)
        return [str(one.WhichOneof("message")) for one in self.seen]

    async def greet(self, node: str = "edge-1", **fields: Any) -> FakeAgent:
        """Says hello and takes the welcome."""
        await self.say(hello=hello(node, **fields))
        self.welcome = await self.expect("welcome")
        return self

    async def update(self, task: pb.Task, state: pb.TaskState.ValueType, **fields: Any) -> None:
        """What becomes of a task."""
        await self.say(task=pb.TaskUpdate(task_id=task.id, attempt=task.attempt, state=state, **fields))

    async def finish(self, task: pb.Task, state: pb.TaskState.ValueType = pb.TASK_STATE_DONE, **fields: Any) -> None:
        """Ends it and hears that this is kept."""
        await self.update(task, state, **fields)
        while (await self.expect("acknowledged")).task_id != task.id:
            pass

    async def serve(self, states: Sequence[serving_pb2.ServingState], gone: Sequence[str] = ()) -> None:
        """What its heads serve."""
        await self.say(serving=pb.ServingUpdate(states=states, gone=gone))

    async def ended(self) -> MeshError:
        """The error that the stream ends with; what comes before it is kept in ``seen``."""
        try:
            while True:
                self.seen.append(await self.read())
        except MeshError as error:
            return error

    def drop(self) -> None:
        """As when the link breaks."""
        self.call.cancel()


class FleetDesk:
    """A fleet and calls to it."""

    def __init__(self, host: Any) -> None:
        self.host = host
        self.channel = grpc.aio.insecure_channel(host.address)
        self.stub: Any = fleet_pb2_grpc.FleetServiceStub(self.channel)
        self._agents: list[FakeAgent] = []

    def agent(self) -> FakeAgent:
        """A stream that is open and has said nothing."""
        self._agents.append(FakeAgent(self.stub))
        return self._agents[-1]

    async def connect(self, node: str = "edge-1", **fields: Any) -> FakeAgent:
        """An agent that was welcomed."""
        return await self.agent().greet(node, **fields)

    async def call(self, method: str, request: Any) -> Any:
        """One unary call; raises :class:`MeshError`."""
        try:
            return await getattr(self.stub, method)(request, timeout=WAIT_S)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    async def submit(self, node: str = "edge-1", **fields: Any) -> Any:
        """A task that profiles."""
        if "target" not in fields:
            fields["node"] = node
        fields.setdefault("profile", pb.ProfileWork(model="m", version=1))
        return (await self.call("SubmitTask", pb.SubmitTaskRequest(**fields))).task

    async def task(self, task_id: str) -> Any:
        """As it stands."""
        found = await self.call("ListTasks", pb.ListTasksRequest(page_size=1000))
        return next(one for one in found.tasks if one.id == task_id)

    async def node(self, node: str = "edge-1") -> Any:
        """As it stands."""
        return (await self.call("GetNode", pb.GetNodeRequest(node=node))).node

    async def until_task(self, task_id: str, fits: Callable[[pb.Task], bool]) -> Any:
        """Follows it until it fits."""
        call = self.stub.WatchTask(pb.WatchTaskRequest(task_id=task_id), timeout=WAIT_S)
        try:
            async for response in call:
                if fits(response.task):
                    return response.task
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        finally:
            call.cancel()
        raise AssertionError("it ended otherwise")

    async def until_node(self, fits: Callable[[pb.Node], bool], node: str = "edge-1") -> Any:
        """Asks until it fits."""
        async with asyncio.timeout(WAIT_S):
            while True:
                with suppress(MeshError):
                    if fits(found := await self.node(node)):
                        return found
                await asyncio.sleep(0.02)

    async def close(self) -> None:
        """Ends all streams."""
        for agent in self._agents:
            agent.drop()
        await self.channel.close()


def settings_at(folder: Path, **changes: Any) -> FleetSettings:
    """Of a fleet on an SQLite file in a folder, quick to notice things."""
    values = {"data_dir": folder / "fleet", "node": "fleet", "drain_s": 2.0, "flush_s": 0.1, **changes}
    return FleetSettings(static_addresses="registry=127.0.0.1:1", **values)


@asynccontextmanager
async def fleet_at(folder: Path, **changes: Any) -> AsyncIterator[FleetDesk]:
    """A running fleet; a second one on the same folder goes on with what it finds."""
    async with Host("fleet", settings_at(folder, **changes), build) as host:
        desk = FleetDesk(host)
        try:
            yield desk
        finally:
            await desk.close()
