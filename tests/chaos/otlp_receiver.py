"""OTLP receivers: one that answers as it is told, and, as ``python -m tests.chaos.otlp_receiver``, one that counts."""

from __future__ import annotations

import gzip
import json
import socket
import subprocess
import sys
import threading
from collections import Counter
from contextlib import contextmanager
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

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
    """No answer, until another answer is set."""


class ControlledReceiver(ThreadingHTTPServer):
    """An OTLP endpoint on the loopback that answers as it is told, and keeps nothing."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__((HOST, 0), ControlledHandler)
        self._answer = Answer.ACCEPTED
        self._answering = threading.Event()
        self._answering.set()
        self.endpoint = f"http://{HOST}:{self.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.05,), name="otlp-receiver", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.answer = Answer.ACCEPTED
        self.shutdown()
        self.server_close()

    @property
    def answer(self) -> Answer:
        """The answer to the next request; waits while it is `NONE`."""
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


class ControlledHandler(BaseHTTPRequestHandler):
    """Reads a request and answers it."""

    server: ControlledReceiver

    def do_POST(self) -> None:
        """Answer a request of any signal."""
        self.rfile.read(int(self.headers["Content-Length"]))
        status, body = self.server.answer.value
        if status > 0:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def closed_endpoint() -> Iterator[str]:
    """Reserve the port of an endpoint on which nothing listens."""
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        yield f"http://{HOST}:{taken.getsockname()[1]}"


class Counts:
    """Counts of what was received."""

    def __init__(self) -> None:
        self.spans: Counter[str] = Counter()
        """Spans by name."""
        self.series: set[str] = set()
        """Series of the last export of metrics."""
        self.twice = self.exports = 0
        self.lock = threading.Lock()

    def take(self, path: str, body: bytes) -> None:
        """Count one request."""
        if path.endswith("/traces"):
            self._take_spans(ExportTraceServiceRequest.FromString(body))
        elif path.endswith("/metrics"):
            self._take_metrics(ExportMetricsServiceRequest.FromString(body))

    def _take_spans(self, request: ExportTraceServiceRequest) -> None:
        found = Counter(
            span.name for resource in request.resource_spans for scope in resource.scope_spans for span in scope.spans
        )
        with self.lock:
            self.spans += found

    def _take_metrics(self, request: ExportMetricsServiceRequest) -> None:
        found = Counter(series(request))
        with self.lock:
            self.exports += 1
            self.series = set(found)
            self.twice += found.total() - len(found)

    def as_dict(self) -> dict[str, Any]:
        """Return the counts as JSON data."""
        with self.lock:
            return {
                "spans": dict(self.spans),
                "series": sorted(self.series),
                "twice": self.twice,
                "exports": self.exports,
            }


def series(request: ExportMetricsServiceRequest) -> Iterator[str]:
    """Return each point's metric and attributes: one export may contain each of them once."""
    for resource in request.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in getattr(metric, metric.WhichOneof("data") or "sum").data_points:
                    attributes = sorted(f"{each.key}={each.value.string_value}" for each in point.attributes)
                    yield f"{metric.name} {' '.join(attributes)}"


class CountingHandler(BaseHTTPRequestHandler):
    """Counts every export, and returns the counts to a GET."""

    protocol_version = "HTTP/1.1"
    counts = Counts()

    def do_POST(self) -> None:
        """Receive an export."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.counts.take(self.path, body)
        self._answer("application/x-protobuf", b"")

    def do_GET(self) -> None:
        """Return the counts."""
        self._answer("application/json", json.dumps(self.counts.as_dict()).encode())

    def _answer(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


class CountingReceiver:
    """An OTLP endpoint in a process of its own, while the block lasts."""

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "tests.chaos.otlp_receiver"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.endpoint = f"http://127.0.0.1:{int(self._process.stdout.readline())}"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # which closes its input

    def counts(self) -> dict[str, Any]:
        """Return the counts of what was received so far."""
        with urlopen(self.endpoint) as answer:  # nosec B310 # noqa: S310 - our own process's
            counts: dict[str, Any] = json.load(answer)
        return counts


def main() -> None:
    """Print the port, and count exports until the input ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), CountingHandler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
