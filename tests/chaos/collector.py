"""An OTLP endpoint on the loopback that answers as it is told, and keeps nothing."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

HOST = "127.0.0.1"


class Answer(Enum):
    """The status and the body of an answer."""

    ACCEPTED = (200, b"")
    GARBAGE = (200, b"\xff\xffthis is no message")
    NO_HTTP = (-1, b"\xff\xffthis is no status line\r\n")
    REFUSED = (400, b"")
    UNAVAILABLE = (503, b"")
    NONE = (0, b"")
    """None, until there is another one to give."""


class Collector(ThreadingHTTPServer):
    """Takes every POST."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__((HOST, 0), Handler)
        self._answer = Answer.ACCEPTED
        self._answering = threading.Event()
        self._answering.set()
        self.endpoint = f"http://{HOST}:{self.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.05,), name="collector", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.answer = Answer.ACCEPTED
        self.shutdown()
        self.server_close()

    @property
    def answer(self) -> Answer:
        """What comes next."""
        self._answering.wait()
        return self._answer

    @answer.setter
    def answer(self, answer: Answer) -> None:
        self._answer = answer
        if answer is Answer.NONE:
            self._answering.clear()
        else:
            self._answering.set()

    def handle_error(self, *_: object) -> None:
        """Ignore a client that has stopped waiting."""


class Handler(BaseHTTPRequestHandler):
    """Reads a request and answers it."""

    server: Collector

    def do_POST(self) -> None:
        """Of whatever signal."""
        self.rfile.read(int(self.headers["Content-Length"]))
        status, body = self.server.answer.value
        if status > 0:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def absent() -> Iterator[str]:
    """Reserve the port of an endpoint on which nothing listens."""
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        yield f"http://{HOST}:{taken.getsockname()[1]}"
