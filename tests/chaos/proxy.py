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
CHUNK = 65_536  # more than a record of TLS: nothing is left inside of it that a select would not see
GREETING = 5.0
"""Seconds that a client may take to begin TLS."""


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
        self.target = "127.0.0.1", port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.weather = Weather.FAIR
        self.struck: Counter[Weather] = Counter()
        """How often it was felt."""
        self.tls: ssl.SSLContext | None = None
        self.passages: set[Passage] = set()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def certify(self, authority: trustme.CA) -> None:
        """Speak TLS with whoever connects from now on, under a certificate of this authority's."""
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(tls)
        self.tls = tls

    def cut(self) -> None:
        """Reset every connection that passes through, on both sides."""
        for passage in [*self.passages]:
            passage.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._connect(client)

    def _connect(self, client: socket.socket) -> None:
        passage = Passage(self, client)
        self.passages.add(passage)
        passage.start()


class Passage(threading.Thread):
    """One connection that passes through, both ways in one thread: two must not use a TLS socket at a time."""

    def __init__(self, proxy: Proxy, client: socket.socket) -> None:
        super().__init__(name="proxy", daemon=True)
        self._proxy = proxy
        self._ends = [client]
        self._cut = threading.Event()

    def cut(self) -> None:
        """Let it end by a reset, now."""
        self._cut.set()
        for end in [*self._ends]:
            with suppress(OSError):
                socket.socket.shutdown(end, socket.SHUT_RD)  # wakes who reads it; not TLS's own, which forgets its keys

    def run(self) -> None:
        """Pass on, until one side ends it or it is cut."""
        with suppress(OSError):
            self._begin()
            while not self._cut.is_set() and self._pass_on():
                pass
        for end in self._ends:
            with suppress(OSError):
                if self._cut.is_set():
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                end.close()
        self._proxy.passages.discard(self)

    def _begin(self) -> None:
        weather = self._proxy.weather
        if weather is Weather.RESETTING:
            self._proxy.struck[weather] += 1
            self.cut()
        elif weather in {Weather.SILENT, Weather.BLACK_HOLE}:
            self._proxy.struck[weather] += 1
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
        """Whatever there is now, in the weather that there is; whether more can come."""
        client, server = self._ends
        for source in select.select(self._ends, [], [])[0]:
            data = b"" if self._cut.is_set() else source.recv(CHUNK)  # TLS would answer the end with an alert
            if not data:
                return False
            for piece in self._weathered(data):
                (server if source is client else client).sendall(piece)
        return True

    def _weathered(self, data: bytes) -> list[bytes]:
        weather = self._proxy.weather
        self._proxy.struck[weather] += 1
        while self._proxy.weather is Weather.BLACK_HOLE and not self._cut.wait(0.01):
            pass
        if weather is Weather.SLOW:
            self._cut.wait(0.1)
        if self._cut.is_set():
            raise ConnectionResetError
        return [bytes([byte]) for byte in data] if weather is Weather.DRIP else [data]
