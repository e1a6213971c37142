"""A network between a pool and its server that can be cut, silenced and slowed down."""

from __future__ import annotations

import select
import socket
import ssl
import struct
import threading
from collections import Counter
from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import trustme
    from typing_extensions import Self

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST
CHUNK = 65_536  # more than a record of TLS, so that nothing stays in its buffer, which select does not see
GREETING = 5.0
"""Seconds that a client may take to begin TLS."""


class Condition(Enum):
    """What the network does to the data."""

    NORMAL = "passes everything on"
    BLACK_HOLE = "passes nothing on and says nothing"
    SLOW = "takes 100 ms each way"
    BYTE_BY_BYTE = "passes one byte at a time"
    RESETTING = "resets new connections"
    SILENT = "accepts new connections, and says nothing"


class Proxy:
    """Listens on the loopback, and passes data on as the condition of the network allows."""

    def __init__(self, port: int) -> None:
        self.target = "127.0.0.1", port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.condition = Condition.NORMAL
        self.felt: Counter[Condition] = Counter()
        """How often each condition had an effect."""
        self.tls: ssl.SSLContext | None = None
        self.connections: set[ProxiedConnection] = set()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def certify(self, authority: trustme.CA) -> None:
        """Speak TLS with new clients, with a certificate of this authority."""
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(tls)
        self.tls = tls

    def cut(self) -> None:
        """Reset every connection, on both sides."""
        for connection in [*self.connections]:
            connection.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._connect(client)

    def _connect(self, client: socket.socket) -> None:
        connection = ProxiedConnection(self, client)
        self.connections.add(connection)
        connection.start()


class ProxiedConnection(threading.Thread):
    """One connection, both ways in one thread, as two threads must not use a TLS socket at a time."""

    def __init__(self, proxy: Proxy, client: socket.socket) -> None:
        super().__init__(name="proxy", daemon=True)
        self._proxy = proxy
        self._ends = [client]
        self._cut = threading.Event()

    def cut(self) -> None:
        """Reset the connection now."""
        self._cut.set()
        for end in [*self._ends]:
            with suppress(OSError):
                socket.socket.shutdown(end, socket.SHUT_RD)  # wakes the reader; TLS's own shutdown would drop its keys

    def run(self) -> None:
        """Pass data on until one side ends the connection or it is cut."""
        with suppress(OSError):
            self._begin()
            while not self._cut.is_set() and self._pass_on():
                pass
        for end in self._ends:
            with suppress(OSError):
                if self._cut.is_set():
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                end.close()
        self._proxy.connections.discard(self)

    def _begin(self) -> None:
        condition = self._proxy.condition
        if condition is Condition.RESETTING:
            self._proxy.felt[condition] += 1
            self.cut()
        elif condition in {Condition.SILENT, Condition.BLACK_HOLE}:
            self._proxy.felt[condition] += 1
            self._cut.wait()
        else:
            if self._proxy.tls is not None:
                self._greet(self._proxy.tls)
            self._ends.append(socket.create_connection(self._proxy.target))
            for end in self._ends:
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _greet(self, tls: ssl.SSLContext) -> None:
        """Answer PostgreSQL's request for TLS, and begin it."""
        [client] = self._ends
        client.settimeout(GREETING)
        client.recv(8)
        client.sendall(b"S")
        self._ends[0] = greeted = tls.wrap_socket(client, server_side=True, do_handshake_on_connect=False)
        greeted.do_handshake()
        greeted.settimeout(None)

    def _pass_on(self) -> bool:
        """Pass on the present data under the present condition; return whether more can come."""
        client, server = self._ends
        for source in select.select(self._ends, [], [])[0]:
            data = b"" if self._cut.is_set() else source.recv(CHUNK)  # TLS would answer the end with an alert
            if not data:
                return False
            for piece in self._apply_condition(data):
                (server if source is client else client).sendall(piece)
        return True

    def _apply_condition(self, data: bytes) -> list[bytes]:
        condition = self._proxy.condition
        self._proxy.felt[condition] += 1
        while self._proxy.condition is Condition.BLACK_HOLE and not self._cut.wait(0.01):
            pass
        if condition is Condition.SLOW:
            self._cut.wait(0.1)
        if self._cut.is_set():
            raise ConnectionResetError
        return [bytes([byte]) for byte in data] if condition is Condition.BYTE_BY_BYTE else [data]
