"""A link made worse on purpose: a TCP relay with a rate, a delay, jitter, fading, stalls and outages.

Put between head and tail it turns loopback into a 5G link, anywhere and without privileges. It knows bytes in order and
link profiles; it does not know packets: loss shows as delay, the way TCP shows it. Both directions are paced by one
clock each, shared by all connections; what is in flight is bounded, so a fast sender is slowed down.

    python -m splitmesh.testing.relay --listen 127.0.0.1:7100 --target 127.0.0.1:7002 --profile private-5g
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import signal
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Self

from splitmesh.testing.links import FADE_S, PROFILES, LinkProfile, faded_mbps, fading_levels

__all__ = ["PROFILES", "LinkProfile", "LinkRelay"]

_PIECE_BYTES = 16 << 10
_AHEAD_S = 0.01
"""A direction may be read this far ahead of its pace: a timer that fires late then costs no throughput."""
_IN_FLIGHT_PIECES = 256
"""Held per connection and direction at most, 4 MiB: 100 Mbit/s for 330 ms."""
_BUFFER_BYTES = 64 << 10
_SOCKET_BYTES = 256 << 10
"""Small, so that a sender feels the link instead of filling the system's buffers."""
_SEGMENT_BYTES = 1400
"""A network's segments: with loopback's of 64 KiB a sender slowed down waits 90-220 ms for TCP's window probes."""
_MAX_CONNECTIONS = 256
_CONNECT_S = 5.0


class LinkRelay:
    """``async with LinkRelay("127.0.0.1:7002", PROFILES["lte"]) as relay:`` then connect to ``relay.address``.

    Args:
        target: ``host:port`` connections are passed on to.
        profile: how good the link is at first.
        listen: ``host:port`` to answer at; port 0 picks a free one.
        seed: of jitter and fading; the same seed draws the same values.
        fading: whether the uplink's rate wanders around the median, between the profile's percentiles.
    """

    def __init__(
        self, target: str, profile: LinkProfile, *, listen: str = "127.0.0.1:0", seed: int = 0, fading: bool = False
    ) -> None:
        self._target = _host_port(target)
        self._listen = _host_port(listen)
        self.profile = profile
        """The profile in force; see :meth:`set_profile`."""
        self._jitter = random.Random(seed)
        # A generator of its own: how the link fades must not depend on how much is sent.
        self._fading = random.Random(seed) if fading else None
        self._up_way, self._down_way = _Way(profile.uplink_mbps), _Way(profile.downlink_mbps)
        self._held_until = 0.0
        self._refuse_new = False
        self._healthy = asyncio.Event()
        self._healthy.set()
        self._cut: asyncio.TimerHandle | None = None
        self._connections: dict[asyncio.Task[None], _Connection] = {}
        self._fader: asyncio.Task[None] | None = None
        self._server: asyncio.Server | None = None
        self.address = ""
        """``host:port`` once started."""

    async def __aenter__(self) -> Self:
        sock = socket.create_server(self._listen)
        # Before there are connections: shrinking an established one's window makes gaps (measured: 94 ms in 1.2 s).
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BYTES)
        with suppress(OSError):  # not every system lets a listening socket have it
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, _SEGMENT_BYTES)
        host, port = sock.getsockname()[:2]
        self.address = f"{host}:{port}"
        self._server = await asyncio.start_server(self._accept, sock=sock, limit=_BUFFER_BYTES)
        if self._fading is not None:
            self._fader = asyncio.create_task(self._fade(self._fading), name="link fading")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        if self._cut is not None:
            self._cut.cancel()
        if self._fader is not None:
            self._fader.cancel()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    @property
    def uplink_bytes(self) -> int:
        """Bytes handed to the target so far."""
        return self._up_way.delivered

    @property
    def downlink_bytes(self) -> int:
        """Bytes handed to the connecting side so far."""
        return self._down_way.delivered

    @property
    def in_flight_bytes(self) -> int:
        """Bytes taken from one side and not yet handed to the other."""
        return sum(flight.size for connection in self._connections.values() for flight in connection.flights)

    def set_profile(self, profile: LinkProfile) -> None:
        """Changes the link; what is already in flight keeps its time of arrival."""
        self.profile = profile
        self._up_way.mbps, self._down_way.mbps = profile.uplink_mbps, profile.downlink_mbps

    def stall(self, seconds: float) -> None:
        """From now on nothing arrives for so long, in either direction, and nothing is lost: a handover's gap."""
        self._held_until = max(self._held_until, asyncio.get_running_loop().time() + seconds)

    def down(self, *, refuse_new: bool = True, cut_after_s: float | None = None) -> None:
        """Takes the link away: what established connections send is swallowed, and at last they are reset.

        Args:
            refuse_new: new connections are reset at once; otherwise they hang, and go through when the link is back.
            cut_after_s: when established connections are reset; without it when the link is back.
        """
        self._refuse_new = refuse_new
        self._healthy.clear()
        if self._cut is not None:
            self._cut.cancel()
        if cut_after_s is not None:
            self._cut = asyncio.get_running_loop().call_later(cut_after_s, self._cut_established)

    def up(self) -> None:
        """Brings the link back, for new connections; those established before the outage are reset."""
        if not self._healthy.is_set():
            self._cut_established()
            self._refuse_new = False
            self._healthy.set()

    def _cut_established(self) -> None:
        if self._cut is not None:
            self._cut.cancel()
            self._cut = None
        for task, connection in self._connections.items():
            if connection.established:
                task.cancel()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refuse_new or len(self._connections) >= _MAX_CONNECTIONS:
            _reset(writer)
            return
        connection = _Connection(writer)
        task = asyncio.create_task(self._serve(connection, reader, writer))
        self._connections[task] = connection
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        for left in self._connections.pop(task).writers:
            _reset(left)

    async def _serve(self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await asyncio.sleep(self.profile.rtt_ms / 1e3)  # setting up a connection costs a round trip of its own
            await self._healthy.wait()
            connection.established = True
            async with asyncio.timeout(_CONNECT_S):
                far_reader, far_writer = await asyncio.open_connection(*self._target, limit=_BUFFER_BYTES)
            connection.writers.append(far_writer)
            for each in connection.writers:
                _keep_small(each)
                _hand_on_at_once(each)
            up, down = connection.flights
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._fill(self._up_way, up, reader))
                pumps.create_task(self._drain(self._up_way, up, far_writer))
                pumps.create_task(self._fill(self._down_way, down, far_reader))
                pumps.create_task(self._drain(self._down_way, down, writer))
            while connection.writers:
                connection.writers.pop().close()
        except* OSError:
            pass  # one side is gone: the other is reset

    async def _fill(self, way: _Way, flight: _Flight, source: asyncio.StreamReader) -> None:
        """Takes bytes at the link's pace and gives each piece its time of arrival; an empty piece is the end."""
        loop, piece = asyncio.get_running_loop(), b"?"
        while piece:
            await self._healthy.wait()
            piece = await source.read(_PIECE_BYTES)
            sent = way.reserve(len(piece), max(loop.time(), self._held_until))
            flight.size += len(piece)
            await flight.pieces.put((sent + self._one_way_s(), piece))
            await asyncio.sleep(sent - _AHEAD_S - loop.time())

    async def _drain(self, way: _Way, flight: _Flight, sink: asyncio.StreamWriter) -> None:
        """Hands on each piece when it has arrived."""
        loop, piece = asyncio.get_running_loop(), b"?"
        while piece:
            arrival, piece = await flight.pieces.get()
            while not self._healthy.is_set() or loop.time() < max(arrival, self._held_until):
                await self._healthy.wait()
                await asyncio.sleep(max(arrival, self._held_until) - loop.time())
            flight.size -= len(piece)
            way.delivered += len(piece)
            sink.write(piece)
            await sink.drain()
        sink.write_eof()

    def _one_way_s(self) -> float:
        # Two independent directions with this spread each make a round trip with the profile's.
        late_ms = self._jitter.gauss(0.0, self.profile.jitter_ms / math.sqrt(2))
        return max(0.0, self.profile.rtt_ms / 2 + late_ms) / 1e3

    async def _fade(self, rng: random.Random) -> None:
        for level in fading_levels(rng):
            self._up_way.mbps = faded_mbps(self.profile, level)
            await asyncio.sleep(FADE_S)


class _Way:
    """One direction of the link, shared by all connections."""

    def __init__(self, mbps: float) -> None:
        self.mbps = mbps
        self.delivered = 0
        self._free_at = 0.0

    def reserve(self, size: int, now: float) -> float:
        """When the last of ``size`` bytes has left, behind all that was reserved before."""
        self._free_at = max(self._free_at, now) + size * 8 / (self.mbps * 1e6)
        return self._free_at


class _Flight:
    """What one connection has on its way in one direction."""

    def __init__(self) -> None:
        self.pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_IN_FLIGHT_PIECES)
        self.size = 0


class _Connection:
    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.established = False
        self.writers = [writer]
        self.flights = (_Flight(), _Flight())


def _keep_small(writer: asyncio.StreamWriter) -> None:
    writer.transport.set_write_buffer_limits(0)  # drain() then waits for the last byte
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)


def _hand_on_at_once(writer: asyncio.StreamWriter) -> None:
    # asyncio leaves out sockets made without a protocol number; small pieces then wait 40 ms for the other's acknowledgement.
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    with suppress(OSError):  # lingering for no time makes it a reset, not an end of stream
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def _host_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"{text!r} is not host:port")
    return host.strip("[]"), int(port)


async def _run(arguments: argparse.Namespace) -> None:
    asked = {name: getattr(arguments, name) for name in ("uplink_mbps", "downlink_mbps", "rtt_ms", "jitter_ms")}
    profile = replace(PROFILES[arguments.profile], **{key: value for key, value in asked.items() if value is not None})
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    settings = {"listen": arguments.listen, "seed": arguments.seed, "fading": arguments.fading}
    async with LinkRelay(arguments.target, profile, **settings) as relay:
        print(f"{relay.address} -> {arguments.target} {profile}", flush=True)
        await ended.wait()
        print(f"uplink {relay.uplink_bytes} bytes, downlink {relay.downlink_bytes} bytes", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; runs until it is interrupted or terminated."""
    parser = argparse.ArgumentParser(prog="python -m splitmesh.testing.relay", description=__doc__.splitlines()[0])
    parser.add_argument("--listen", default="127.0.0.1:0", help="host:port to answer at (default: a free port)")
    parser.add_argument("--target", required=True, help="host:port to pass connections on to")
    parser.add_argument("--profile", choices=sorted(PROFILES), default="private-5g")
    parser.add_argument("--fading", action="store_true", help="let the uplink's rate wander each second")
    parser.add_argument("--seed", type=int, default=0, help="of jitter and fading")
    for option in ("--uplink-mbps", "--downlink-mbps", "--rtt-ms", "--jitter-ms"):
        parser.add_argument(option, type=float, help="instead of the profile's")
    asyncio.run(_run(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
