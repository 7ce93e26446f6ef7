"""The kernel's facts: real connections, one behind a slow relay, one of gRPC's own, and structs of every age."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Iterator
from contextlib import closing, suppress

import grpc
import pytest

from splitmesh.kernel import tcp_info
from splitmesh.kernel.tcp_info import TcpFacts, parse_tcp_info, tcp_facts
from splitmesh.testing.links import LinkProfile
from splitmesh.testing.relay import LinkRelay

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="struct tcp_info is Linux's")


def info(length: int = 248, *, state: int = 1, flags: int = 0, **fields: int) -> bytes:
    """A struct tcp_info with some fields set, by the offsets of linux/tcp.h."""
    at = {
        "snd_mss": (16, 4), "unacked": (24, 4), "rtt": (68, 4), "total_retrans": (100, 4), "bytes_acked": (120, 8),
        "segs_out": (136, 4), "notsent": (144, 4), "min_rtt": (148, 4), "data_segs_out": (156, 4),
        "delivery_rate": (160, 8), "bytes_sent": (200, 8), "bytes_retrans": (208, 8),
    }  # fmt: skip
    content = bytearray(max(length, 248))
    content[0], content[7] = state, flags
    for name, value in fields.items():
        offset, size = at[name]
        content[offset : offset + size] = value.to_bytes(size, sys.byteorder)
    return bytes(content[:length])


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket, tuple[str, int]]]:
    """A connection on loopback: its client, its server, and the server's address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()[:2]
        with socket.create_connection(address) as client, listener.accept()[0] as server:
            yield client, server, address


@linux
def test_what_was_sent_is_counted_and_the_round_trip_known(
    pair: tuple[socket.socket, socket.socket, tuple[str, int]],
) -> None:
    client, server, address = pair
    for _ in range(5):
        client.sendall(b"x" * 100)
        assert server.recv(100)
        server.sendall(b"y")
        assert client.recv(1)
    facts = tcp_facts([address])[address]
    assert facts.sent_segments == 5
    assert facts.resent_segments == 0
    assert facts.unacked_bytes == 0
    assert 0 < facts.min_rtt_ms <= facts.rtt_ms < 200
    assert facts.delivery_bytes_per_s > 0


@linux
def test_what_nobody_reads_is_unacknowledged(pair: tuple[socket.socket, socket.socket, tuple[str, int]]) -> None:
    client, _, address = pair
    client.setblocking(False)
    sent = 0
    with suppress(BlockingIOError):
        while True:
            sent += client.send(b"x" * 65536)
    assert 10_000 < tcp_facts([address])[address].unacked_bytes <= sent


@linux
def test_other_peers_listeners_and_closed_connections_are_not_reported(
    pair: tuple[socket.socket, socket.socket, tuple[str, int]],
) -> None:
    client, server, address = pair
    near = client.getsockname()[:2]
    assert set(tcp_facts([address, near, ("127.0.0.1", 1), ("192.0.2.1", address[1])])) == {address, near}
    server.close()
    assert client.recv(1) == b""
    assert tcp_facts([address]) == {}, "half closed is not established"
    assert tcp_facts([]) == {}


@linux
def test_of_several_connections_the_busiest_tells(pair: tuple[socket.socket, socket.socket, tuple[str, int]]) -> None:
    client, server, address = pair
    with socket.create_connection(address):
        for _ in range(3):
            client.sendall(b"x")
            server.recv(1)
        assert tcp_facts([address])[address].sent_segments == 3


@linux
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::ffff:127.0.0.1"])
def test_a_peer_is_found_by_name_by_address_and_on_a_socket_of_the_other_family(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with closing(socket.socket(socket.AF_INET6)) as client:
            try:
                client.connect(("::ffff:127.0.0.1", port))
            except OSError as error:
                pytest.skip(f"no IPv6 here: {error}")
            assert set(tcp_facts([(host, port)])) == {(host, port)}


@linux
async def test_grpc_s_own_connection_is_seen_and_a_far_link_tells_its_round_trip() -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"localhost:{port}") as channel:
        async with asyncio.timeout(10):
            await channel.channel_ready()
        with pytest.raises(grpc.RpcError):
            await channel.unary_unary("/no.Such/Method")(b"", timeout=5)
        facts = tcp_facts([("localhost", port)])
    await server.stop(None)
    assert facts["localhost", port].sent_segments > 0


@linux
async def test_behind_a_relay_the_kernel_tells_only_of_the_way_to_the_relay() -> None:
    """Why a frame's own time must be heard too."""
    done = asyncio.Event()

    async def echo_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(1000))
        with suppress(OSError):
            await reader.read()
        writer.close()
        done.set()

    echo = await asyncio.start_server(echo_once, "127.0.0.1", 0)
    target = echo.sockets[0].getsockname()
    async with LinkRelay(f"{target[0]}:{target[1]}", LinkProfile("far", 8.0, 8.0, 200.0)) as relay:
        host, _, port = relay.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"x" * 1000)
        async with asyncio.timeout(10):
            await reader.readexactly(1000)
        facts = tcp_facts([(host, int(port))])[host, int(port)]
        writer.close()
        await writer.wait_closed()
    async with asyncio.timeout(5):
        await done.wait()
    echo.close()
    assert 0 < facts.min_rtt_ms < 100


def test_every_field_is_read_where_the_kernel_puts_it() -> None:
    told = info(
        flags=1, rtt=21_500, min_rtt=20_250, delivery_rate=1_250_000, segs_out=90, data_segs_out=70, total_retrans=7,
        notsent=500, bytes_sent=9000, bytes_retrans=1000, bytes_acked=6000, unacked=99, snd_mss=1400,
    )  # fmt: skip
    assert parse_tcp_info(told) == TcpFacts(21.5, 20.25, 1_250_000.0, 70, 7, 2500, app_limited=True)


def test_an_old_kernel_s_shorter_struct_leaves_out_what_it_does_not_have() -> None:
    fields = {"rtt": 21_500, "min_rtt": 20_250, "delivery_rate": 9, "segs_out": 90, "data_segs_out": 70,
              "total_retrans": 7, "unacked": 2, "snd_mss": 1400, "notsent": 5}  # fmt: skip
    assert parse_tcp_info(info(160, **fields)) == TcpFacts(21.5, 20.25, 0.0, 70, 7, 2805)
    assert parse_tcp_info(info(148, **fields)) == TcpFacts(21.5, 0.0, 0.0, 90, 7, 2805)
    assert parse_tcp_info(info(104, **fields)) == TcpFacts(21.5, 0.0, 0.0, 0, 7, 2800)


@pytest.mark.parametrize("length", range(0, 249, 3))
def test_a_struct_that_ends_anywhere_is_read_as_far_as_it_goes(length: int) -> None:
    facts = parse_tcp_info(info(length, rtt=5000, min_rtt=4000, bytes_sent=3, bytes_acked=9))
    assert facts is None if length < 8 else facts is not None and facts.unacked_bytes == 0


def test_a_round_trip_that_was_never_measured_is_not_known() -> None:
    facts = parse_tcp_info(info(min_rtt=0xFFFFFFFF))
    assert facts is not None
    assert facts.min_rtt_ms == 0


@pytest.mark.parametrize("state", [0, 2, 7, 10])
def test_only_established_connections_count(state: int) -> None:
    assert parse_tcp_info(info(state=state, rtt=1)) is None


def test_where_the_system_does_not_say_there_are_no_facts_and_one_line_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tcp_info._say_once.cache_clear()
    monkeypatch.setattr(tcp_info, "DESCRIPTORS", "/no/such/folder")
    with caplog.at_level(logging.INFO):
        assert tcp_facts([("127.0.0.1", 1)]) == {}
        assert tcp_facts([("127.0.0.1", 1)]) == {}
    assert len(caplog.records) == 1
    monkeypatch.setattr(sys, "platform", "darwin")
    assert tcp_facts([("127.0.0.1", 1)]) == {}


@linux
def test_a_name_that_nobody_knows_is_asked_for_once_and_has_no_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def lookup(host: str, *_: object, **__: object) -> list[object]:
        asked.append(host)
        raise socket.gaierror("unknown")

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    for _ in range(3):
        assert tcp_facts([("nobody.invalid", 7002)]) == {}
    assert asked == ["nobody.invalid"]
