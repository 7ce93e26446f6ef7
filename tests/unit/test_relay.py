"""The link relay: rates, delays, order, back-pressure, stalls and outages, on the event loop's own clock."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import signal
import statistics
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from splitmesh.testing.links import faded_mbps, fading_levels
from splitmesh.testing.relay import PROFILES, LinkProfile, LinkRelay

DEADLINE_S = 20.0
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def link(up: float = math.inf, down: float = math.inf, rtt_ms: float = 0.0, jitter_ms: float = 0.0) -> LinkProfile:
    return LinkProfile("test", up, down, rtt_ms, jitter_ms)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(1 << 16):
        writer.write(piece)
        await writer.drain()
    writer.write_eof()


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """A server at the address yielded; a handler may end by a connection error."""
    handling: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except OSError:
            pass
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handling.add(asyncio.create_task(handle(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    try:
        yield f"{host}:{port}"
    finally:
        server.close()
        for task in handling:
            task.cancel()
        await asyncio.gather(*handling, return_exceptions=True)


Connect = Callable[[LinkRelay], Awaitable[Pair]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Opens connections to a relay; closes them at the end."""
    opened: list[asyncio.StreamWriter] = []

    async def open_one(relay: LinkRelay) -> Pair:
        host, port = relay.address.split(":")
        async with asyncio.timeout(DEADLINE_S):
            pair = await asyncio.open_connection(host, int(port))
        opened.append(pair[1])
        return pair

    yield open_one
    for writer in opened:
        writer.close()


async def exchange(pair: Pair, payload: bytes) -> float:
    """Seconds until the payload came back whole."""
    reader, writer = pair
    loop = asyncio.get_running_loop()
    started = loop.time()

    async def send() -> None:
        writer.write(payload)
        await writer.drain()

    async with asyncio.timeout(DEADLINE_S):
        _, back = await asyncio.gather(send(), reader.readexactly(len(payload)))
    assert back == payload
    return loop.time() - started


async def seconds(wanted: Awaitable[object]) -> float:
    started = asyncio.get_running_loop().time()
    await wanted
    return asyncio.get_running_loop().time() - started


async def ended(pair: Pair) -> bool:
    """Whether the connection is reset, or ends, within the deadline."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            return await pair[0].read(1) == b""
    except ConnectionError:
        return True


@pytest.mark.parametrize(("up", "down", "slower"), [(40.0, math.inf, 40.0), (math.inf, 20.0, 20.0), (30.0, 30.0, 30.0)])
async def test_a_large_transfer_runs_at_the_configured_rate(
    up: float, down: float, slower: float, connect: Connect
) -> None:
    payload = random.Random(1).randbytes(1_500_000)
    async with serving(echo) as target, LinkRelay(target, link(up, down)) as relay:
        pair = await connect(relay)
        # The best of three: a busy machine adds time, and never takes any away.
        took = min([await exchange(pair, payload) for _ in range(3)])
    assert took == pytest.approx(len(payload) * 8 / (slower * 1e6), rel=0.3)


async def test_connections_share_one_rate(connect: Connect) -> None:
    payload = bytes(400_000)
    async with serving(echo) as target, LinkRelay(target, link(up=32.0)) as relay:
        pairs = [await connect(relay) for _ in range(4)]
        took = min([await seconds(asyncio.gather(*(exchange(pair, payload) for pair in pairs))) for _ in range(3)])
    assert took == pytest.approx(0.4, rel=0.3)


async def test_a_round_trip_takes_the_profiles_time(connect: Connect) -> None:
    async with serving(echo) as target, LinkRelay(target, link(rtt_ms=60.0)) as relay:
        pair = await connect(relay)
        first = await exchange(pair, b"set-up costs a round trip more")
        later = [await exchange(pair, b"ping") for _ in range(5)]
    assert first >= 0.115
    assert 0.055 <= statistics.median(later) < 0.2


async def test_small_pieces_in_a_row_do_not_wait_for_each_others_acknowledgement(connect: Connect) -> None:
    async def in_pieces(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while byte := await reader.read(1):
            for _ in range(3):
                writer.write(byte)
                await asyncio.sleep(0.001)

    async with serving(in_pieces) as target, LinkRelay(target, link()) as relay:
        reader, writer = await connect(relay)

        async def ask() -> None:
            writer.write(b"?")
            await reader.readexactly(3)

        took = [await seconds(ask()) for _ in range(30)]
    assert statistics.median(took) < 0.03


async def test_jitter_never_reorders_bytes(connect: Connect) -> None:
    payload = random.Random(2).randbytes(600_000)
    async with serving(echo) as target, LinkRelay(target, link(200.0, 200.0, 20.0, 10.0), seed=3) as relay:
        pair = await connect(relay)
        for start in range(0, len(payload), 30_000):
            pair[1].write(payload[start : start + 30_000])
            await pair[1].drain()
        async with asyncio.timeout(DEADLINE_S):
            assert await pair[0].readexactly(len(payload)) == payload


async def test_bytes_are_counted_exactly_in_each_direction(connect: Connect) -> None:
    async def ten_for_each(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(10 * len(await reader.read())))
        await writer.drain()

    async with serving(ten_for_each) as target, LinkRelay(target, link()) as relay:
        reader, writer = await connect(relay)
        writer.write(bytes(12_345))
        writer.write_eof()
        async with asyncio.timeout(DEADLINE_S):
            assert len(await reader.read()) == 123_450
        assert (relay.uplink_bytes, relay.downlink_bytes, relay.in_flight_bytes) == (12_345, 123_450, 0)


async def test_a_sender_is_slowed_down_while_nobody_reads(connect: Connect) -> None:
    hung_up = asyncio.Event()

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await hung_up.wait()

    async with serving(deaf) as target, LinkRelay(target, link(up=800.0)) as relay:
        _, writer = await connect(relay)
        writer.transport.set_write_buffer_limits(0)
        accepted = 0
        with suppress(TimeoutError):
            while accepted < 64 << 20:
                writer.write(bytes(1 << 18))
                async with asyncio.timeout(1.0):
                    await writer.drain()
                accepted += 1 << 18
        assert accepted < 16 << 20, "the sender got rid of more than buffers may hold"
        assert 1 << 20 < relay.in_flight_bytes < 5 << 20
        hung_up.set()


async def test_a_stall_delays_and_loses_nothing(connect: Connect) -> None:
    async with serving(echo) as target, LinkRelay(target, link()) as relay:
        pair = await connect(relay)
        await exchange(pair, b"before")
        relay.stall(0.4)
        assert await exchange(pair, b"during") >= 0.39
        assert await exchange(pair, b"after") < 0.3


async def test_a_new_profile_is_in_force_at_once(connect: Connect) -> None:
    async with serving(echo) as target, LinkRelay(target, link()) as relay:
        pair = await connect(relay)
        assert await exchange(pair, b"near") < 0.19
        relay.set_profile(link(rtt_ms=200.0))
        assert await exchange(pair, b"far") >= 0.19
        assert relay.profile.rtt_ms == 200.0


async def test_an_outage_swallows_what_is_sent_and_then_cuts(connect: Connect) -> None:
    received = bytearray()

    async def collect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(1 << 16):
            received.extend(piece)
            writer.write(b"!")

    async with serving(collect) as target, LinkRelay(target, link()) as relay:
        pair = await connect(relay)
        pair[1].write(b"heard")
        async with asyncio.timeout(DEADLINE_S):
            await pair[0].readexactly(1)
        relay.down(cut_after_s=0.3)
        pair[1].write(b"lost")
        assert 0.25 <= await seconds(ended(pair)) < 5.0
        assert received == b"heard"
        assert relay.uplink_bytes == len(b"heard")


async def test_an_outage_resets_new_connections_and_the_link_comes_back(connect: Connect) -> None:
    async with serving(echo) as target, LinkRelay(target, link()) as relay:
        old = await connect(relay)
        await exchange(old, b"before")
        relay.down()
        assert await ended(await connect(relay))
        relay.up()
        assert await ended(old), "a connection does not outlive an outage"
        assert await exchange(await connect(relay), b"after") < 5.0


async def test_new_connections_can_hang_until_the_link_is_back(connect: Connect) -> None:
    async with serving(echo) as target, LinkRelay(target, link()) as relay:
        relay.down(refuse_new=False)
        waiting = asyncio.create_task(exchange(await connect(relay), b"patience"))
        asyncio.get_running_loop().call_later(0.3, relay.up)
        assert await waiting >= 0.29


async def test_a_dead_target_resets_the_connection(connect: Connect) -> None:
    async with serving(echo) as target:
        pass
    async with LinkRelay(target, link()) as relay:
        assert await ended(await connect(relay))


async def test_the_targets_reset_reaches_the_other_side(connect: Connect) -> None:
    async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.transport.abort()

    async with serving(rude) as target, LinkRelay(target, link()) as relay:
        pair = await connect(relay)
        pair[1].write(b"??")
        assert await ended(pair)


async def test_leaving_the_relay_ends_its_connections(connect: Connect) -> None:
    async with serving(echo) as target:
        async with LinkRelay(target, link()) as relay:
            pair = await connect(relay)
            await exchange(pair, b"open")
        assert await ended(pair)


@pytest.fixture
async def health_server() -> AsyncIterator[str]:
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(health_aio.HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


async def test_grpc_runs_through_a_link_and_outlives_its_outage(health_server: str) -> None:
    quick = [(f"grpc.{name}_reconnect_backoff_ms", 200) for name in ("initial", "min", "max")]
    async with (
        LinkRelay(health_server, link(100.0, 100.0, 40.0, 5.0)) as relay,
        grpc.aio.insecure_channel(relay.address, options=quick) as channel,
    ):
        stub, request = health_pb2_grpc.HealthStub(channel), health_pb2.HealthCheckRequest()
        await stub.Check(request, timeout=DEADLINE_S)
        assert await seconds(stub.Check(request, timeout=DEADLINE_S)) >= 0.02
        relay.down(cut_after_s=1.0)
        codes = []
        for timeout_s in (0.2, DEADLINE_S):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Check(request, timeout=timeout_s)
            codes.append(caught.value.code())
        assert codes == [grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE]
        relay.up()
        # A connection that was being set up while the link came back may be reset once more.
        async with asyncio.timeout(DEADLINE_S):
            while True:
                with suppress(grpc.aio.AioRpcError):
                    await stub.Check(request, timeout=DEADLINE_S, wait_for_ready=True)
                    break
        assert relay.uplink_bytes > 0
        assert relay.downlink_bytes > 0


def test_a_fading_uplink_meets_its_percentiles() -> None:
    band = PROFILES["public-5g-sa"]
    assert faded_mbps(band, 0.0) == 28.0
    assert faded_mbps(band, -1.645) == pytest.approx(5.0)
    assert faded_mbps(band, 1.645) == pytest.approx(49.0)
    assert faded_mbps(band, -9.0) == 0.1
    assert faded_mbps(PROFILES["private-5g"], -1.645) == 100.0


def test_fading_levels_are_standard_normal_and_cling_to_the_last() -> None:
    levels = list(itertools.islice(fading_levels(random.Random(7)), 20_000))
    assert statistics.mean(levels) == pytest.approx(0.0, abs=0.1)
    assert statistics.stdev(levels) == pytest.approx(1.0, abs=0.1)
    assert statistics.correlation(levels, levels[1:] + levels[:1]) == pytest.approx(0.88, abs=0.02)


async def test_fading_changes_the_rate_as_the_seed_says(connect: Connect) -> None:
    level = random.Random(5).gauss(0.0, 1.0)
    payload = bytes(400_000)
    async with serving(echo) as target, LinkRelay(target, PROFILES["lte"], seed=5, fading=True) as relay:
        rate_mbps = len(payload) * 8 / await exchange(await connect(relay), payload) / 1e6
    wanted_mbps = faded_mbps(PROFILES["lte"], level)
    assert wanted_mbps < 0.5 * PROFILES["lte"].uplink_mbps
    assert 0.4 * wanted_mbps < rate_mbps < 1.2 * wanted_mbps


async def test_the_command_line_relays_until_it_is_terminated() -> None:
    async with serving(echo) as target:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "splitmesh.testing.relay", "--target", target, "--profile", "lte", "--rtt-ms", "5",
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            line = (await process.stdout.readline()).decode()
            host, port = line.split(" -> ")[0].split(":")
            pair = await asyncio.open_connection(host, int(port))
            await exchange(pair, b"through")
            pair[1].close()
            process.send_signal(signal.SIGTERM)
            assert (await process.stdout.readline()).decode() == "uplink 7 bytes, downlink 7 bytes\n"
            assert await process.wait() == 0
