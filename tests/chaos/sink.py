"""``python -m tests.chaos.sink``: an OTLP endpoint in a process of its own that counts what it gets, and keeps nothing."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self


class Counts:
    """What has come in."""

    def __init__(self) -> None:
        self.spans: Counter[str] = Counter()
        """By name."""
        self.series: set[str] = set()
        """Of the last export of metrics."""
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
        """For who asks over HTTP."""
        with self.lock:
            return {
                "spans": dict(self.spans),
                "series": sorted(self.series),
                "twice": self.twice,
                "exports": self.exports,
            }


def series(request: ExportMetricsServiceRequest) -> Iterator[str]:
    """Each point's metric and attributes: one export may hold each of them once."""
    for resource in request.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in getattr(metric, metric.WhichOneof("data") or "sum").data_points:
                    attributes = sorted(f"{each.key}={each.value.string_value}" for each in point.attributes)
                    yield f"{metric.name} {' '.join(attributes)}"


class Handler(BaseHTTPRequestHandler):
    """Takes everything."""

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
        """Somebody wants to know."""
        self._answer("application/json", json.dumps(self.counts.as_dict()).encode())

    def _answer(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Sink:
    """The process, while the block lasts."""

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "tests.chaos.sink"]
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
    """Say the port, and take what comes until the input ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
