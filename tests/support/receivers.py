"""OTLP endpoints on the loopback that keep what they are sent, decoded from the wire (see ``otlp_views``).

    with GrpcReceiver() as receiver:  # or HttpReceiver(): the same face
        run_program(env=receiver.environ)
        receiver.wait_for(lambda r: len(r.spans) == 3)

``receiver.mode`` makes an endpoint fail, see ``Mode``; ``closed_endpoint()`` is one where nobody listens.
"""

from __future__ import annotations

import gzip
import socket
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, ClassVar

import grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from tests.support.emitted import check_log, check_point, check_span
from tests.support.otlp_views import LogRecord, MetricPoint, Span, log_records, metric_points, spans
from tests.support.signal_registry import SCOPE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from typing_extensions import Self


class Mode(Enum):
    """How a receiver answers."""

    ACCEPT = "keep it and say so"
    UNAVAILABLE = "refuse in a way that asks for a retry: 503, UNAVAILABLE"
    REJECT = "refuse for good: 400, INVALID_ARGUMENT"
    HANG = "do not answer before the mode changes or the receiver closes"
    GARBAGE = "answer success with a body that is no message of the protocol"


_REFUSALS = {
    Mode.UNAVAILABLE: (503, grpc.StatusCode.UNAVAILABLE),
    Mode.REJECT: (400, grpc.StatusCode.INVALID_ARGUMENT),
}
_GARBAGE = b"\xff\xffthis is no message"


class _Refused(Exception):  # noqa: N818 - an answer, not an error
    def __init__(self, mode: Mode) -> None:
        super().__init__(mode.value)
        self.http_status, self.grpc_status = _REFUSALS[mode]


class Receiver:
    """What both kinds share: the store, the modes and the waiting."""

    protocol: ClassVar[str]

    def __init__(self) -> None:
        self.endpoint = ""
        self._changed = threading.Condition()
        self._closed = False
        self._mode = Mode.ACCEPT
        self._requests: list[dict[str, str]] = []
        self._spans: list[Span] = []
        self._metrics: list[MetricPoint] = []
        self._logs: list[LogRecord] = []

    @property
    def environ(self) -> dict[str, str]:
        """The variables that send a program's telemetry here."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": self.protocol}

    @property
    def spans(self) -> list[Span]:
        return self._copy(self._spans)

    @property
    def metrics(self) -> list[MetricPoint]:
        return self._copy(self._metrics)

    @property
    def logs(self) -> list[LogRecord]:
        return self._copy(self._logs)

    @property
    def requests(self) -> list[dict[str, str]]:
        """Every request seen, answered or not: its headers, with names in lower case, ``:signal`` and ``:peer``."""
        return self._copy(self._requests)

    @property
    def mode(self) -> Mode:
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        with self._changed:
            self._mode = mode
            self._changed.notify_all()

    def wait_for(self, predicate: Callable[[Self], object], timeout: float = 20.0) -> None:
        """Return when ``predicate(self)`` holds, asked at each arrival; AssertionError after ``timeout`` s."""
        with self._changed:
            if not self._changed.wait_for(lambda: predicate(self), timeout):
                raise AssertionError(f"not within {timeout} s; arrived: {self!r}")

    def clear(self) -> None:
        """Forget what has arrived."""
        with self._changed:
            for store in (self._requests, self._spans, self._metrics, self._logs):
                store.clear()

    def __repr__(self) -> str:
        with self._changed:
            names = sorted({span.name for span in self._spans})
            metrics = sorted({point.name for point in self._metrics})
            logs = [record.body for record in self._logs]
            return f"<{type(self).__name__} {len(self._requests)} requests, spans {names}, {metrics=}, {logs=}>"

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, exc_type: object, *_exc: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._stop()
        if exc_type is None:
            self._assert_that_all_is_declared()

    def _assert_that_all_is_declared(self) -> None:
        """Compare what has arrived of this package with the registry of the signals."""
        for check, arrived in ((check_span, self._spans), (check_point, self._metrics), (check_log, self._logs)):
            for each in arrived:
                if each.scope.name == SCOPE:
                    check(each)

    def _start(self) -> None:
        raise NotImplementedError

    def _stop(self) -> None:
        raise NotImplementedError

    def _copy(self, store: list[Any]) -> list[Any]:
        with self._changed:
            return list(store)

    def _receive(self, signal: str, peer: str, headers: Mapping[str, str], body: bytes) -> bytes:
        """Keep a request and return the answer's body; raises ``_Refused`` where the mode says so."""
        with self._changed:
            lowered = {name.lower(): value for name, value in headers.items()}
            self._requests.append({**lowered, ":signal": signal, ":peer": peer})
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._mode is not Mode.HANG or self._closed)
            if self._mode in _REFUSALS:
                raise _Refused(self._mode)
            if self._mode is Mode.GARBAGE:
                return _GARBAGE
            if not self._closed:
                self._keep(signal, body)
                self._changed.notify_all()
            return b""  # of each signal, the answer to a full success is the empty message

    def _keep(self, signal: str, body: bytes) -> None:
        if signal == "traces":
            self._spans += spans(trace_service_pb2.ExportTraceServiceRequest.FromString(body))
        elif signal == "metrics":
            self._metrics += metric_points(metrics_service_pb2.ExportMetricsServiceRequest.FromString(body))
        else:
            self._logs += log_records(logs_service_pb2.ExportLogsServiceRequest.FromString(body))


class GrpcReceiver(Receiver):
    protocol = "grpc"

    def _start(self) -> None:
        self._server = grpc.server(ThreadPoolExecutor(max_workers=8, thread_name_prefix="otlp-grpc"))
        self._server.add_generic_rpc_handlers(
            [
                self._service("traces", trace_service_pb2.DESCRIPTOR.services_by_name["TraceService"].full_name),
                self._service("metrics", metrics_service_pb2.DESCRIPTOR.services_by_name["MetricsService"].full_name),
                self._service("logs", logs_service_pb2.DESCRIPTOR.services_by_name["LogsService"].full_name),
            ]
        )
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def _stop(self) -> None:
        self._server.stop(grace=None).wait()

    def _service(self, signal: str, name: str) -> grpc.GenericRpcHandler:
        # Without serializers gRPC hands over bytes, so that an answer need not be a message.
        def export(body: bytes, context: grpc.ServicerContext) -> bytes:
            try:
                return self._receive(signal, context.peer(), dict(context.invocation_metadata()), body)
            except _Refused as refused:
                context.abort(refused.grpc_status, str(refused))
                raise

        return grpc.method_handlers_generic_handler(name, {"Export": grpc.unary_unary_rpc_method_handler(export)})


class HttpReceiver(Receiver):
    protocol = "http/protobuf"

    def _start(self) -> None:
        self._server = _HttpServer(("127.0.0.1", 0), _Handler)
        self._server.receiver = self
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="otlp-http", daemon=True)
        self._thread.start()

    def _stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _HttpServer(ThreadingHTTPServer):
    """Closes the connections that clients keep alive too, and waits for their threads."""

    daemon_threads = False
    receiver: HttpReceiver

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._open: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Programs under test time out and are killed: a client that left before its answer is no error.
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def server_close(self) -> None:
        for request in list(self._open):
            with suppress(OSError):  # the client was faster
                request.shutdown(socket.SHUT_RDWR)
        super().server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _HttpServer

    _DECODERS: ClassVar[dict[str, Callable[[bytes], bytes]]] = {
        "identity": bytes,
        "gzip": gzip.decompress,
        "deflate": zlib.decompress,
    }

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        signal = self.path.removeprefix("/v1/")
        decode = self._DECODERS.get(self.headers.get("Content-Encoding", "identity"))
        if signal not in ("traces", "metrics", "logs"):
            self._answer(404)
        elif decode is None or self.headers.get("Content-Type") != "application/x-protobuf":
            self._answer(415)
        else:
            try:
                peer = "{}:{}".format(*self.client_address)
                self._answer(200, self.server.receiver._receive(signal, peer, dict(self.headers), decode(body)))
            except _Refused as refused:
                self._answer(refused.http_status)

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        """Keep the output of the tests clean."""


@contextmanager
def closed_endpoint() -> Iterator[str]:
    """Give a URL at which connections are refused: its port is taken, and nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"
