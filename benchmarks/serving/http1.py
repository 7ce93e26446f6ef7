"""The same HTTP/1.1 POST again and again on one kept connection, on a bare socket."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass

RECEIVE_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class HttpCall:
    """What is asked again and again."""

    path: str
    body: bytes
    content_type: str
    marker: bytes
    """Every answer holds it, status line and headers included; one without is an error."""


class Http1Load:
    """One connection, one request in flight; ``finished`` collects (seconds, was it an answer)."""

    def __init__(self, host: str, port: int, call: HttpCall) -> None:
        self._sock = socket.create_connection((host, port), timeout=10)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock.setblocking(False)
        head = (
            f"POST {call.path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: {call.content_type}\r\n"
            f"Content-Length: {len(call.body)}\r\nAccept: */*\r\n\r\n"
        )
        self._request = head.encode() + call.body
        self._marker = call.marker
        self._left = memoryview(b"")
        self._in = bytearray()
        self._begun = 0.0
        self._stopped = False
        self.finished: list[tuple[float, bool]] = []

    def start(self) -> None:
        """The first request."""
        self._begun = time.perf_counter()
        self._left = memoryview(self._request)
        self.on_writable()

    def stop(self) -> None:
        """No request after the one in flight."""
        self._stopped = True

    @property
    def idle(self) -> bool:
        """Nothing is in flight."""
        return not self._begun

    def fileno(self) -> int:
        """For a selector."""
        return self._sock.fileno()

    @property
    def wants_to_write(self) -> bool:
        """The socket is full."""
        return len(self._left) > 0

    def close(self) -> None:
        """Hang up."""
        self._sock.close()

    def on_writable(self) -> None:
        """Go on sending."""
        try:
            while self._left:
                self._left = self._left[self._sock.send(self._left) :]
        except BlockingIOError:
            return

    def on_readable(self) -> None:
        """Take what came. ConnectionError when the server hung up."""
        try:
            data = self._sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        if not data:
            raise ConnectionError("the server closed the connection")
        self._in += data
        if not _complete(self._in):
            return
        answered = self._in.startswith(b"HTTP/1.1 200") and self._marker in self._in
        self._in.clear()
        self.finished.append((time.perf_counter() - self._begun, answered))
        self._begun = 0.0
        if not self._stopped:
            self.start()


def _complete(answer: bytearray) -> bool:
    end = answer.find(b"\r\n\r\n")
    if end < 0:
        return False
    fields = dict(line.lower().split(b":", 1) for line in bytes(answer[:end]).split(b"\r\n")[1:])
    if b"content-length" in fields:
        return len(answer) >= end + 4 + int(fields[b"content-length"])
    return answer.endswith(b"0\r\n\r\n")
