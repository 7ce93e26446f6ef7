"""gRPC calls as HTTP/2 frames on a bare socket (RFC 9113), so that a load client costs little beside the server it loads.

A message is never copied: frame headers and slices of it go to the socket side by side. Flow control, pings and settings
are obeyed as any client must. Answers' headers are not decoded: whether an answer is one is told by its bytes.
"""

from __future__ import annotations

import socket
import struct
import time
from collections import deque
from dataclasses import dataclass, field
from itertools import islice

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
HEADER_BYTES = 9
_FRAME_HEADER = struct.Struct(">HBBBI")
GRPC_PREFIX = struct.Struct(">BI")
WIDE_WINDOW = (1 << 31) - 1
INITIAL_WINDOW, INITIAL_FRAME = 65535, 16384
SETTINGS_INITIAL_WINDOW_SIZE, SETTINGS_MAX_FRAME_SIZE = 4, 5
RECEIVE_BYTES = 1 << 18
IOVEC = 256


@dataclass(frozen=True, slots=True)
class GrpcCall:
    """What is asked again and again."""

    path: str
    """``/package.Service/Method``."""
    message: bytes
    """Serialised."""
    marker: bytes
    """Every answer's message holds it; one without is an error."""
    stream: bool = False
    """One bidirectional call per slot, a message at a time; else one unary call per request."""
    greeting: int = 0
    """Messages a stream begins with that answer nothing."""


@dataclass(slots=True)
class _Slot:
    stream_id: int = 0
    window: int = INITIAL_WINDOW
    sent: int = 0
    """Bytes of the request handed to the socket."""
    begun: float = 0.0
    answer: bytearray = field(default_factory=bytearray)
    ignore: int = 0


class Http2Load:
    """One connection with so many requests in flight; ``finished`` collects (seconds, was it an answer)."""

    def __init__(self, host: str, port: int, call: GrpcCall, slots: int) -> None:
        self._call = call
        self._sock = socket.create_connection((host, port), timeout=10)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._out: deque[memoryview] = deque()
        self._in = bytearray()
        self._next_id = 1
        self._window, self._first_window = INITIAL_WINDOW, INITIAL_WINDOW
        self.finished: list[tuple[float, bool]] = []
        settings = struct.pack(">HI", SETTINGS_INITIAL_WINDOW_SIZE, WIDE_WINDOW)
        opening = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(SETTINGS, 0, 0, settings)
        self._sock.sendall(opening + _frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", WIDE_WINDOW - INITIAL_WINDOW)))
        self._frame_bytes = INITIAL_FRAME
        self._by_stream: dict[int, _Slot] = {}
        # Its limits hold from our acknowledgement on, which therefore goes first.
        self._sock.sendall(self._first_settings())
        self._sock.setblocking(False)
        self._headers = _request_headers(call.path, f"{host}:{port}")
        self._body = memoryview(GRPC_PREFIX.pack(0, len(call.message)) + call.message)
        self._slots = [_Slot() for _ in range(slots)]
        self._stopped = False

    def start(self) -> None:
        """The first request of every slot."""
        for slot in self._slots:
            self._open(slot)
        self._pump()

    def stop(self) -> None:
        """No request after those in flight."""
        self._stopped = True

    @property
    def idle(self) -> bool:
        """Nothing is in flight."""
        return all(not slot.begun for slot in self._slots)

    def fileno(self) -> int:
        """For a selector."""
        return self._sock.fileno()

    @property
    def wants_to_write(self) -> bool:
        """The socket is full."""
        return bool(self._out)

    def close(self) -> None:
        """Hang up."""
        self._sock.close()

    def on_readable(self) -> None:
        """Take what came. ConnectionError when the server hung up."""
        try:
            data = self._sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        if not data:
            raise ConnectionError("the server closed the connection")
        self._in += data
        at, total = 0, len(self._in)
        while total - at >= HEADER_BYTES:
            length = int.from_bytes(self._in[at : at + 3], "big")
            if total - at < HEADER_BYTES + length:
                break
            kind, flags = self._in[at + 3], self._in[at + 4]
            stream_id = int.from_bytes(self._in[at + 5 : at + 9], "big") & WIDE_WINDOW
            body = bytes(self._in[at + HEADER_BYTES : at + HEADER_BYTES + length])
            at += HEADER_BYTES + length
            self._on_frame(kind, flags, stream_id, body)
        del self._in[:at]
        self._pump()

    def on_writable(self) -> None:
        """Go on sending."""
        self._pump()

    def _open(self, slot: _Slot) -> None:
        slot.begun, slot.sent = time.perf_counter(), 0
        slot.answer.clear()
        if slot.stream_id and self._call.stream:
            return
        slot.stream_id, slot.window, slot.ignore = self._next_id, self._first_window, self._call.greeting
        self._next_id += 2
        self._by_stream[slot.stream_id] = slot
        self._out.append(memoryview(_frame(HEADERS, END_HEADERS, slot.stream_id, self._headers)))

    def _pump(self) -> None:
        for slot in self._slots:
            while slot.begun and slot.sent < len(self._body):
                left = len(self._body) - slot.sent
                size = min(self._frame_bytes, self._window, slot.window, left)
                if size <= 0:
                    break
                flags = END_STREAM if size == left and not self._call.stream else 0
                self._out.append(memoryview(_frame_header(DATA, flags, slot.stream_id, size)))
                self._out.append(self._body[slot.sent : slot.sent + size])
                slot.sent += size
                slot.window -= size
                self._window -= size
        while self._out:
            try:
                sent = self._sock.sendmsg(list(islice(self._out, IOVEC)))
            except BlockingIOError:
                return
            while self._out and sent >= len(self._out[0]):
                sent -= len(self._out.popleft())
            if sent:
                self._out[0] = self._out[0][sent:]

    def _on_frame(self, kind: int, flags: int, stream_id: int, body: bytes) -> None:
        slot = self._by_stream.get(stream_id)
        if kind == DATA and slot is not None:
            slot.answer += body
            if self._call.stream:
                self._take_messages(slot)
            if flags & END_STREAM:
                self._ended(slot)
        elif kind == HEADERS and flags & END_STREAM and slot is not None:
            self._ended(slot)
        elif kind == RST_STREAM and slot is not None:
            slot.answer.clear()
            self._ended(slot)
        elif kind == WINDOW_UPDATE:
            grown = int.from_bytes(body, "big")
            if not stream_id:
                self._window += grown
            elif slot is not None:
                slot.window += grown
        elif kind == SETTINGS and not flags & ACK:
            self._out.append(memoryview(self._apply(body)))
        elif kind == PING and not flags & ACK:
            self._out.append(memoryview(_frame(PING, ACK, 0, body)))
        elif kind == GOAWAY:
            raise ConnectionError(f"the server said GOAWAY: {body[8:]!r}")

    def _take_messages(self, slot: _Slot) -> None:
        while len(slot.answer) >= GRPC_PREFIX.size:
            end = GRPC_PREFIX.size + GRPC_PREFIX.unpack_from(slot.answer)[1]
            if len(slot.answer) < end:
                return
            answer = bytes(slot.answer[:end])
            del slot.answer[:end]
            if slot.ignore:
                slot.ignore -= 1
            else:
                self._finish(slot, self._call.marker in answer)

    def _ended(self, slot: _Slot) -> None:
        del self._by_stream[slot.stream_id]
        slot.stream_id = 0
        if slot.begun:
            self._finish(slot, not self._call.stream and self._call.marker in slot.answer)

    def _finish(self, slot: _Slot, answered: bool) -> None:
        self.finished.append((time.perf_counter() - slot.begun, answered))
        slot.begun = 0.0
        if not self._stopped:
            self._open(slot)

    def _apply(self, body: bytes) -> bytes:
        """Take the server's settings over; returns the acknowledgement."""
        for key, value in struct.iter_unpack(">HI", body):
            if key == SETTINGS_INITIAL_WINDOW_SIZE:
                for slot in self._by_stream.values():
                    slot.window += value - self._first_window
                self._first_window = value
            elif key == SETTINGS_MAX_FRAME_SIZE:
                self._frame_bytes = value
        return _frame(SETTINGS, ACK, 0, b"")

    def _first_settings(self) -> bytes:
        while len(self._in) < HEADER_BYTES or len(self._in) < HEADER_BYTES + int.from_bytes(self._in[:3], "big"):
            data = self._sock.recv(RECEIVE_BYTES)
            if not data:
                raise ConnectionError("the server closed the connection")
            self._in += data
        end = HEADER_BYTES + int.from_bytes(self._in[:3], "big")
        if self._in[3] != SETTINGS:
            raise ConnectionError("the server does not speak HTTP/2")
        body = bytes(self._in[HEADER_BYTES:end])
        del self._in[:end]
        return self._apply(body)


def _frame(kind: int, flags: int, stream_id: int, body: bytes) -> bytes:
    return _frame_header(kind, flags, stream_id, len(body)) + body


def _frame_header(kind: int, flags: int, stream_id: int, size: int) -> bytes:
    return _FRAME_HEADER.pack(size >> 8, size & 0xFF, kind, flags, stream_id)


def _request_headers(path: str, authority: str) -> bytes:
    """HPACK literals that no table remembers (RFC 7541, 6.2.2), names from the static table where it has them."""
    plain = [(b"\x04", path), (b"\x01", authority), (b"\x0f\x10", "application/grpc"), (b"\x00\x02te", "trailers")]
    return b"\x83\x86" + b"".join(name + bytes([len(value)]) + value.encode() for name, value in plain)
