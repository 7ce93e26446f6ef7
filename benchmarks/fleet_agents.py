"""Agents in a process of their own: real streams, one connection each, and when each was welcomed and told what.

They do no work: whatever they are told to deploy, they say within ``LOADS_S`` that it serves, as hosts do that load a
version. They share the processor with the fleet that is measured, so they are cheap: bytes that were serialised once, one timer
for the heartbeats of all. Clocks of processes on one machine agree (CLOCK_MONOTONIC).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection

import grpc

from splitmesh.api.fleet.v1 import fleet_pb2 as pb
from splitmesh.api.serving.v1 import serving_pb2
from splitmesh.kernel.channels import open_channel

WELCOMED = "welcomed"
POLICY = "policy"
DEPLOY = "deploy"
ENDED = "ended"
CPU = "cpu"
STOP = "stop"
SPREAD_S = 5.0
"""Within which all of them come: as long as an agent's longest back-off."""
LOADS_S = 2.0
"""Longest time until an agent says that what it was told to deploy serves; they differ evenly."""
TURN_S = 0.05
"""Between two turns of heartbeats."""

_CONNECT = f"/{pb.DESCRIPTOR.services_by_name['FleetService'].full_name}/Connect"
_BEAT = pb.ConnectRequest(heartbeat=pb.Heartbeat(cpu_share=0.4, memory_bytes=3 << 30)).SerializeToString()


@dataclass(frozen=True, slots=True)
class Crowd:
    """Which agents one process shall be."""

    address: str
    agents: int


class Seen:
    """When every agent of a crowd came to know something, by what it is."""

    def __init__(self, agents: int) -> None:
        self._agents = agents
        self._times: dict[str, list[int]] = defaultdict(list)
        self._complete: dict[str, asyncio.Event] = defaultdict(asyncio.Event)

    def note(self, what: str, moment_ns: int) -> None:
        """One of them."""
        times = self._times[what]
        times.append(moment_ns)
        if len(times) == self._agents:
            self._complete[what].set()

    async def all_of(self, what: str) -> list[int]:
        """Once all of them have; nanoseconds."""
        await self._complete[what].wait()
        return self._times[what]


def serve(crowd: Crowd, pipe: Connection) -> None:
    """Entry point of the process. Each word on the pipe is something to wait for (``welcomed``, ``policy-1``, ``deploy-2``,
    ``ended-2``), answered by the times of all agents; ``cpu`` is answered by the processor time of this process, nanoseconds;
    ``stop`` ends it."""
    asyncio.run(_serve(crowd, pipe))


async def _serve(crowd: Crowd, pipe: Connection) -> None:
    seen = Seen(crowd.agents)
    agents = [_Agent(crowd.address, number, seen) for number in range(crowd.agents)]
    running = [asyncio.create_task(agent.run()) for agent in agents]
    running.append(asyncio.create_task(_beat(agents)))
    loop = asyncio.get_running_loop()
    try:
        while (word := await loop.run_in_executor(None, _word, pipe)) != STOP:
            if word == CPU:
                pipe.send([time.process_time_ns()])
                continue
            waiting = asyncio.create_task(seen.all_of(word))
            # An agent that ends has failed: better to say so than to wait for it.
            done, _ = await asyncio.wait([waiting, *running], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {waiting}:
                task.result()
            pipe.send(waiting.result())
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def _word(pipe: Connection) -> str:
    try:
        return str(pipe.recv())
    except EOFError:  # whoever started this process is gone
        return STOP


async def _beat(agents: list[_Agent]) -> None:
    """Every agent beats as often as it was told, and never all of them at once."""
    every_s = 0.0
    while not every_s:
        await asyncio.sleep(TURN_S)
        every_s = agents[0].heartbeat_s
    turns = round(every_s / TURN_S)
    while True:
        for turn in range(turns):
            await asyncio.gather(*(agent.say(_BEAT) for agent in agents[turn::turns]))
            await asyncio.sleep(TURN_S)


class _Agent:
    """One host's."""

    def __init__(self, address: str, number: int, seen: Seen) -> None:
        self.heartbeat_s = 0.0
        self._address = address
        self._number = number
        self._name = f"mec-{number}"
        self._seen = seen
        self._policies = 0
        self._told: set[int] = set()
        self._versions: dict[str, int] = {}
        self._writing = asyncio.Lock()
        self._call: grpc.aio.StreamStreamCall | None = None

    async def run(self) -> None:
        """Until it is cancelled; raises when its stream ends."""
        async with open_channel(self._address) as channel:
            await asyncio.sleep(SPREAD_S * random.random())
            began = time.monotonic_ns()
            call = channel.stream_stream(_CONNECT)(wait_for_ready=True)
            try:
                await call.write(_hello(self._name, self._number))
                first = await call.read()
                if first is grpc.aio.EOF or not (welcome := pb.ConnectResponse.FromString(first)).HasField("welcome"):
                    raise RuntimeError(f"{self._name} was not welcomed: {await call.code()} {await call.details()}")
                self._seen.note(WELCOMED, time.monotonic_ns() - began)
                self._call, self.heartbeat_s = call, welcome.welcome.heartbeat.ToTimedelta().total_seconds()
                async with asyncio.TaskGroup() as answers:
                    while (told := await call.read()) is not grpc.aio.EOF:
                        self._hear(told, answers)
                    raise RuntimeError(f"the stream of {self._name} ended: {await call.code()} {await call.details()}")
            finally:
                call.cancel()

    async def say(self, *messages: bytes) -> None:
        """In this order; nothing before it was welcomed."""
        if self._call is None:
            return
        async with self._writing:
            for message in messages:
                await self._call.write(message)

    def _hear(self, told: bytes, answers: asyncio.TaskGroup) -> None:
        now = time.monotonic_ns()
        message = pb.ConnectResponse.FromString(told)
        if message.HasField("policy"):
            self._policies += 1
            self._seen.note(f"{POLICY}-{self._policies}", now)
        elif message.HasField("acknowledged"):
            if version := self._versions.pop(message.acknowledged.task_id, 0):
                self._seen.note(f"{ENDED}-{version}", now)
        elif message.HasField("offer"):
            version = message.offer.deploy.assignment.version
            if version not in self._told:
                self._told.add(version)
                self._versions[message.offer.id] = version
                self._seen.note(f"{DEPLOY}-{version}", now)
            answers.create_task(self._obey(message.offer))

    async def _obey(self, task: pb.Task) -> None:
        await asyncio.sleep(LOADS_S * random.random())
        await self.say(*_answers(task, self._name))


def _answers(task: pb.Task, name: str) -> Iterator[bytes]:
    orders = task.deploy.assignment
    state = serving_pb2.ServingState(
        model=orders.model,
        generation=orders.generation,
        active_version=orders.version,
        wanted=serving_pb2.VersionState(version=orders.version, phase=serving_pb2.PHASE_SERVING),
        node=name,
    )
    running = pb.TaskUpdate(task_id=task.id, attempt=task.attempt, state=pb.TASK_STATE_RUNNING)
    done = pb.TaskUpdate(task_id=task.id, attempt=task.attempt, state=pb.TASK_STATE_DONE)
    yield pb.ConnectRequest(task=running).SerializeToString()
    yield pb.ConnectRequest(serving=pb.ServingUpdate(states=[state])).SerializeToString()
    yield pb.ConnectRequest(task=done).SerializeToString()


def _hello(name: str, number: int) -> bytes:
    capabilities = pb.Capabilities(
        cpu_model="Simulated 4-core",
        cpu_flags=["avx2", "fma"],
        cores=4,
        memory_bytes=16 << 30,
        architecture="x86_64",
        os="Linux",
        backends=[pb.Backend(name="onnxruntime-cpu", version="1.0", precisions=["fp32"])],
        task_kinds=[pb.TASK_KIND_DEPLOY],
        fingerprint="0" * 64,
    )
    hello = pb.Hello(
        node=name,
        site=f"site-{number % 20}",
        line=f"line-{number % 4}",
        camera_groups=["cams"],
        boot_id=f"boot-{name}",
        agent_version="simulated",
        capabilities=capabilities,
        max_tasks=1,
    )
    return pb.ConnectRequest(hello=hello).SerializeToString()
