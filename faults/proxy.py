"""A network between a pool and its server that can be cut, silenced and slowed down."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
import time
from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import trustme
    from typing_extensions import Self

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST
CHUNK = 65_536


class Weather(Enum):
    """What the network does to whatever passes."""

    FAIR = "passes everything on"
    BLACK_HOLE = "passes nothing on and says nothing"
    SLOW = "takes 100 ms each way"
    DRIP = "passes one byte at a time"
    RESETTING = "resets new connections"
    SILENT = "accepts new connections, and says nothing"


class Proxy:
    """Listens on the loopback, and passes on what it gets, as the weather lets it."""

    def __init__(self, port: int) -> None:
        self._target = "127.0.0.1", port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.weather = Weather.FAIR
        self._tls: ssl.SSLContext | None = None
        self._pairs: set[tuple[socket.socket, socket.socket | None]] = set()
        self._over = threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def certify(self, authority: trustme.CA) -> None:
        """Speak TLS with whoever connects from now on, under a certificate of this authority's."""
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(self._tls)

    def cut(self) -> None:
        """Reset every connection that passes through, on both sides."""
        for pair in [*self._pairs]:
            self._pairs.discard(pair)
            for sock in pair:
                if sock is not None:
                    _reset(sock)

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.weather is Weather.RESETTING:
                _reset(client)
            elif self.weather in (Weather.SILENT, Weather.BLACK_HOLE):
                self._pairs.add((client, None))
            else:
                self._connect(client)

    def _connect(self, client: socket.socket) -> None:
        try:
            if self._tls is not None:
                client = _greet(client, self._tls)
            server = socket.create_connection(self._target)
        except OSError:
            _reset(client)
            return
        for sock in (client, server):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pair = client, server
        self._pairs.add(pair)
        for source, sink in (pair, pair[::-1]):
            threading.Thread(target=self._pass_on, args=(source, sink, pair), name="proxy", daemon=True).start()

    def _pass_on(
        self, source: socket.socket, sink: socket.socket, pair: tuple[socket.socket, socket.socket | None]
    ) -> None:
        with suppress(OSError):
            while data := source.recv(CHUNK):
                while self.weather is Weather.BLACK_HOLE and not self._over.is_set():
                    time.sleep(0.01)
                if self.weather is Weather.SLOW:
                    time.sleep(0.1)
                if self.weather is Weather.DRIP:
                    for byte in data:
                        sink.sendall(bytes([byte]))
                else:
                    sink.sendall(data)
        self._pairs.discard(pair)
        for sock in (source, sink):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


def _greet(client: socket.socket, tls: ssl.SSLContext) -> ssl.SSLSocket:
    """Answer PostgreSQL's request for TLS, and begin it."""
    client.recv(8)
    client.sendall(b"S")
    return tls.wrap_socket(client, server_side=True)


def _reset(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        sock.shutdown(socket.SHUT_RD)  # wakes who reads it; closing alone does not
    with suppress(OSError):
        sock.close()
