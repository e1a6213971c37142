"""A server that speaks PostgreSQL's protocol as far as it wants to, and says what it likes."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

REFUSED_ENCRYPTION = (80877103, 80877104)
"""The codes of a request for TLS and for GSSAPI (protocol-message-formats.html)."""
READY = b"Z\0\0\0\x05I"


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


def error(text: str, *, state: str = "28000", severity: str = "FATAL", file: str = "auth.c", **fields: str) -> bytes:
    """Return an error message; ``fields`` are further fields by their letter, such as D for the detail."""
    parts = {"S": severity, "V": severity, "C": state, "M": text, "F": file, **fields}
    return message(b"E", b"".join(f"{key}{value}\0".encode() for key, value in parts.items()) + b"\0")


def notice(text: str) -> bytes:
    return message(b"N", f"SNOTICE\0VNOTICE\0C00000\0M{text}\0\0".encode())


def login(**more: str) -> bytes:
    """Return what a server says to a client that it lets in; ``more`` are further settings that it reports."""
    settings = {"server_version": "18.0", "client_encoding": "UTF8", "standard_conforming_strings": "on", **more}
    statuses = b"".join(message(b"S", f"{name}\0{value}\0".encode()) for name, value in settings.items())
    return message(b"R", bytes(4)) + statuses + message(b"K", bytes(8)) + READY


class HostileServer:
    """Answers each connection with what a function of its socket does, in a thread for each."""

    def __init__(self, answer: Callable[[socket.socket], None]) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.dsn = f"host=127.0.0.1 port={self.port} user=app dbname=shop sslmode=disable gssencmode=disable"
        self.url = f"postgresql+psycopg2://app@127.0.0.1:{self.port}/shop?sslmode=disable&gssencmode=disable"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                conn, _address = self._listener.accept()
                threading.Thread(target=self._serve, args=(conn,), daemon=True).start()

    def _serve(self, conn: socket.socket) -> None:
        with conn, suppress(OSError, struct.error):
            while True:
                (length,) = struct.unpack("!I", conn.recv(4))
                body = conn.recv(length - 4)
                if struct.unpack("!I", body[:4])[0] not in REFUSED_ENCRYPTION:
                    break
                conn.sendall(b"N")
            self._answer(conn)


def says(*texts: bytes) -> Callable[[socket.socket], None]:
    """Answer a login with these, and hang up."""
    return lambda conn: conn.sendall(b"".join(texts))


def fails(text: bytes) -> Callable[[socket.socket], None]:
    """Let everybody in, and answer each statement with an error."""

    def answer(conn: socket.socket) -> None:
        conn.sendall(login())
        while head := conn.recv(5):
            rest = struct.unpack("!I", head[1:])[0] - 4
            while rest:
                rest -= len(conn.recv(rest))
            if head[:1] == b"X":
                return
            conn.sendall(text + READY)

    return answer
