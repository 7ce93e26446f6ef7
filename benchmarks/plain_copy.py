"""A plain file copy over a socket, what a transfer is compared with: read, send, receive, write, sync. No digest, no resumption.

Both ends are processes that do nothing else; which of them connects is the caller's choice, because a link is not the same both
ways. Knows files and sockets.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import struct
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

PIECE_BYTES = 1 << 20
_HEADER = struct.Struct("!Q")


def _send(link: socket.socket, source: Path) -> None:
    with source.open("rb") as file:
        link.sendall(_HEADER.pack(os.fstat(file.fileno()).st_size))
        link.sendfile(file)
    if link.recv(1) != b"k":
        raise ConnectionError("the copy was not kept")


def _receive(link: socket.socket, target: Path) -> None:
    left = int(_HEADER.unpack(_exactly(link, _HEADER.size))[0])
    part = target.with_suffix(".part")
    with part.open("wb", buffering=0) as file:
        piece = memoryview(bytearray(PIECE_BYTES))
        while left:
            got = link.recv_into(piece, min(left, PIECE_BYTES))
            if not got:
                raise ConnectionError("the copy broke off")
            file.write(piece[:got])
            left -= got
        os.fsync(file.fileno())
    os.replace(part, target)
    link.sendall(b"k")


def _exactly(link: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        got = link.recv(size - len(data))
        if not got:
            raise ConnectionError("the copy broke off")
        data += got
    return data


def _serve(pipe: Connection, work: Callable[[socket.socket, Path], None], file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        pipe.send(server.getsockname()[1])
        while True:
            link, _ = server.accept()
            with link:
                link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                work(link, file)


class Copier:
    """A process that takes files (``push``) or gives one (``pull``), for as long as the block lasts."""

    def __init__(self, direction: str, file: Path) -> None:
        self._direction, self._file = direction, file
        self._process: multiprocessing.process.BaseProcess | None = None
        self.address = ""

    def __enter__(self) -> Copier:
        context = multiprocessing.get_context("spawn")
        mine, theirs = context.Pipe()
        work = _receive if self._direction == "push" else _send
        self._process = context.Process(target=_serve, args=(theirs, work, self._file), daemon=True)
        self._process.start()
        self.address = f"127.0.0.1:{mine.recv()}"
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.join()

    def copy(self, address: str, file: Path) -> None:
        """Blocking: ``file`` to the process, or from it, by way of ``address``; done when it is synced at the other end."""
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port))) as link:
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            (_send if self._direction == "push" else _receive)(link, file)
