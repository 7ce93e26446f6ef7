"""What the kernel knows of this process's own TCP connections: round trip, retransmissions, rate. Nothing is sent for it.

Reads ``struct tcp_info`` (linux/tcp.h) of the process's own descriptors. That needs no privilege and no netlink, and costs
about 3 microseconds per open descriptor (measured), whatever else the host has open: a sock_diag dump walks the whole
host's table, 0.8 ms with an empty one. Call it in a thread where a process holds hundreds of connections.

Knows connections by who is at the other end. Where that is a proxy or a relay, everything here is true of the way to the
proxy only; who reads the figures has to judge that. Linux only: elsewhere there are no facts.
"""

from __future__ import annotations

import ctypes
import logging
import os
import socket
import sys
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from ipaddress import ip_address

log = logging.getLogger(__name__)

Peer = tuple[str, int]
"""Host and port, as discovery names them."""

NAME_KEPT_S = 30.0
"""A host's addresses are looked up again after so long."""
MAX_NAMES = 256
DESCRIPTORS = "/proc/self/fd"
ESTABLISHED = 1
"""``TCP_ESTABLISHED`` in ``tcpi_state``."""
LONGEST_INFO = 512
"""Room for ``struct tcp_info``; it had 248 bytes in 2024 and only grows at its end."""
_TCP_INFO = 11
"""``TCP_INFO`` of linux/tcp.h; other systems' ``socket`` has another one or none."""
_MAPPED = bytes(10) + b"\xff\xff"
"""Before an IPv4 address on an IPv6 socket, as gRPC opens them."""
_NOT_MEASURED = 0xFFFFFFFF
"""``tcpi_min_rtt`` before the first sample."""

# Where fields are in struct tcp_info, in bytes. Kernels before 4.6 end at 148, before 4.9 at 160, before 4.19 at 200.
_STATE, _FLAGS, _SEND_MSS, _UNACKED, _RTT, _TOTAL_RETRANS, _BYTES_ACKED = 0, 7, 16, 24, 68, 100, 120
_SEGS_OUT, _NOT_SENT, _MIN_RTT, _DATA_SEGS_OUT, _DELIVERY_RATE, _BYTES_SENT, _BYTES_RETRANS = (
    136, 144, 148, 156, 160, 200, 208,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TcpFacts:
    """One connection, as the kernel counts since it was opened; 0 where it does not say."""

    rtt_ms: float
    """Smoothed round trip of a segment and its acknowledgement, milliseconds."""
    min_rtt_ms: float
    """The least in the kernel's window, five minutes unless set otherwise."""
    delivery_bytes_per_s: float
    """The rate at which data was last seen to arrive."""
    sent_segments: int
    """With data, where the kernel tells those apart (from 4.6); else all."""
    resent_segments: int
    unacked_bytes: int
    """Handed to the kernel and not acknowledged yet."""
    app_limited: bool = False
    """``delivery_bytes_per_s`` is only a lower bound: there was not enough to send to tell."""


def tcp_facts(peers: Collection[Peer]) -> dict[Peer, TcpFacts]:
    """Facts on the established connection to each peer, the busiest one where there are several.

    Looks up names of hosts, at most every ``NAME_KEPT_S``. A peer without a connection is left out; so are all, with one
    line in the log, where the system does not say.
    """
    if not peers or not _supported():
        return {}
    wanted = {(address, port): (host, port) for host, port in peers for address in _addresses(host)}
    found: dict[Peer, TcpFacts] = {}
    sockets = _Sockets()
    for descriptor in _descriptors():
        end = sockets.peer(descriptor)
        peer = None if end is None else wanted.get(end)
        if peer is None:
            continue
        facts = parse_tcp_info(sockets.info(descriptor))
        if facts is not None:
            before = found.get(peer)
            if before is None or facts.sent_segments > before.sent_segments:
                found[peer] = facts
    return found


def parse_tcp_info(info: bytes) -> TcpFacts | None:
    """``struct tcp_info`` as a kernel of any age filled it; None unless it is an established connection's.

    Fields behind the end of ``info`` count as not known.
    """
    if len(info) <= _FLAGS or info[_STATE] != ESTABLISHED:
        return None
    min_rtt_us = _u32(info, _MIN_RTT)
    return TcpFacts(
        rtt_ms=_u32(info, _RTT) / 1e3,
        min_rtt_ms=0.0 if min_rtt_us == _NOT_MEASURED else min_rtt_us / 1e3,
        delivery_bytes_per_s=float(_u64(info, _DELIVERY_RATE)),
        sent_segments=_u32(info, _DATA_SEGS_OUT) or _u32(info, _SEGS_OUT),
        resent_segments=_u32(info, _TOTAL_RETRANS),
        unacked_bytes=_unacked_bytes(info),
        app_limited=bool(info[_FLAGS] & 1),
    )


def _unacked_bytes(info: bytes) -> int:
    waiting = _u32(info, _NOT_SENT)
    if len(info) < _BYTES_RETRANS + 8:
        return waiting + _u32(info, _UNACKED) * _u32(info, _SEND_MSS)
    # To within a byte: the side that connected counts its handshake as one that was acknowledged.
    sent = _u64(info, _BYTES_SENT) - _u64(info, _BYTES_RETRANS) - _u64(info, _BYTES_ACKED)
    return waiting + max(0, sent)


def _u32(info: bytes, offset: int) -> int:
    return int.from_bytes(info[offset : offset + 4], sys.byteorder) if offset + 4 <= len(info) else 0


def _u64(info: bytes, offset: int) -> int:
    return int.from_bytes(info[offset : offset + 8], sys.byteorder) if offset + 8 <= len(info) else 0


class _Sockets:
    """The two calls, on bare descriptors: a socket object would own what is gRPC's, and closing it would end others."""

    def __init__(self) -> None:
        self._libc = _libc()
        self._buffer = ctypes.create_string_buffer(LONGEST_INFO)
        self._size = ctypes.c_uint32()
        self._size_at = ctypes.byref(self._size)

    def peer(self, descriptor: int) -> tuple[bytes, int] | None:
        """Packed address and port at the other end; an IPv4 one on an IPv6 socket as what it is."""
        self._size.value = LONGEST_INFO
        if self._libc.getpeername(descriptor, self._buffer, self._size_at):
            return None
        name = self._buffer.raw[: self._size.value]
        family = int.from_bytes(name[:2], sys.byteorder)
        port = int.from_bytes(name[2:4], "big")
        if family == socket.AF_INET and len(name) >= 8:
            return name[4:8], port
        if family == socket.AF_INET6 and len(name) >= 24:
            return name[8:24].removeprefix(_MAPPED), port
        return None

    def info(self, descriptor: int) -> bytes:
        """Raw; empty where the descriptor is no TCP connection."""
        self._size.value = LONGEST_INFO
        if self._libc.getsockopt(descriptor, socket.IPPROTO_TCP, _TCP_INFO, self._buffer, self._size_at):
            return b""
        return self._buffer.raw[: self._size.value]


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _descriptors() -> list[int]:
    """Open ones of this process; empty, with a line in the log the first time, where the system does not list them."""
    try:
        return [int(name) for name in os.listdir(DESCRIPTORS)]
    except OSError as error:
        _say_once(f"{DESCRIPTORS} cannot be read: {error}")
        return []


@cache
def _say_once(why: str) -> None:
    log.info("nothing is known of TCP connections: %s", why)


def _supported() -> bool:
    if not sys.platform.startswith("linux"):
        _say_once(f"{sys.platform} does not say")
        return False
    return True


@dataclass(frozen=True, slots=True)
class _Name:
    known_s: float
    addresses: tuple[bytes, ...]


_names: dict[str, _Name] = {}


def _addresses(host: str) -> tuple[bytes, ...]:
    """Packed addresses of a host; none where its name is not known."""
    with suppress(ValueError):
        return (ip_address(host.partition("%")[0]).packed.removeprefix(_MAPPED),)
    now_s = time.monotonic()
    name = _names.get(host)
    if name is None or now_s - name.known_s > NAME_KEPT_S:
        try:
            told = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            found = tuple({ip_address(str(entry[4][0]).partition("%")[0]).packed for entry in told})
        except (OSError, UnicodeError):
            found = ()
        if len(_names) >= MAX_NAMES:
            _names.clear()
        name = _names[host] = _Name(now_s, found)
    return name.addresses
