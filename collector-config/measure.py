"""How many checkouts a second one Collector carries on this machine: ``python collector-config/measure.py OTELCOL``.

Runs the program OTELCOL with collector.yaml, on free ports, for some seconds; sends it spans as fast as it takes them,
and takes what it exports in Jaeger's place. Each checkout is a trace of its own: a `pool.checkout`, a query with its
text, and for every tenth a `pool.wait`; 512 spans a message, as the SDK sends them.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import grpc
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

HERE = Path(__file__).parent
HOST = "127.0.0.1"
SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"
# What each file counts of its work, and how many checkouts one of that is: there are 21 spans for ten.
COUNTED = {
    "collector.yaml": ("otelcol_exporter_sent_spans", 10 / 21),
    "gateway.yaml": ("otelcol_processor_tail_sampling_global_count_traces_sampled", 1.0),
}
# What it asks and sends to besides: the defaults are where this machine's own may listen, and nobody does there.
NOWHERE = {"POSTGRES_ENDPOINT": f"{HOST}:1", "PROMETHEUS_ENDPOINT": f"http://{HOST}:1"}
SPANS_A_MESSAGE = 512
SENDERS = 4
STAMP = os.urandom(8)  # the first half of every trace's id while messages are made
WARM_UP = 10.0  # seconds; a gateway judges the ordinary ones decision_wait after they came
SERVER = {"db.system.name": "postgresql", "db.namespace": "shop", "server.address": "postgres", "server.port": 5432}
CHECKOUT: dict[str, Any] = {
    **SERVER,
    "db.client.connection.pool.name": "shop",
    "otel_pgpool.wait_time": 0.00002,
    "otel_pgpool.hold_time": 0.0031,
    "otel_pgpool.retries": 0,
    "otel_pgpool.path": "idle",
    "otel_pgpool.long_hold": False,
    "otel_pgpool.outcome": "committed",
    "otel_pgpool.connection.id": 7,
    "otel_pgpool.connection.pid": 4711,
    "thread.name": "worker-3",
}
QUERY = {
    "db.system": "postgresql",
    "db.name": "shop",
    "db.statement": "select id, amount from orders where customer = %s",
}


class Numbered(RandomIdGenerator):
    """Ids that are easily found."""

    def __init__(self) -> None:
        self._numbers = itertools.count()

    def generate_trace_id(self) -> int:  # noqa: D102 - the SDK's
        return int.from_bytes(STAMP + next(self._numbers).to_bytes(8, "big"), "big")


class Message:
    """A request of the protocol, encoded beforehand, so that making it is not what is measured."""

    def __init__(self, encoded: bytes) -> None:
        self._start, *found = encoded.split(STAMP)
        places = {number: place for place, number in enumerate(dict.fromkeys(each[:8] for each in found))}
        self._traces = len(places)
        self._rest = [(16 * places[each[:8]], each[8:]) for each in found]

    def renewed(self) -> bytes:
        """Give each trace an id that was never sent: tail sampling knows one again by either half."""
        ids = os.urandom(16 * self._traces)
        return b"".join([self._start, *(part for at, after in self._rest for part in (ids[at : at + 16], after))])


def messages(count: int) -> list[Message]:
    """Return a number of different messages."""
    memory = InMemorySpanExporter()
    resource = Resource({"service.name": "shop", "service.instance.id": "1"})
    provider = TracerProvider(resource=resource, id_generator=Numbered())
    provider.add_span_processor(SimpleSpanProcessor(memory))
    pool, queries = provider.get_tracer("otel_pgpool"), provider.get_tracer("opentelemetry.instrumentation.psycopg2")
    made = []
    for _ in range(count):
        for checkout in itertools.count():
            if len(memory.get_finished_spans()) >= SPANS_A_MESSAGE:
                break
            span = pool.start_span("pool.checkout", attributes=CHECKOUT)
            inside = trace.set_span_in_context(span)
            if checkout % 10 == 0:
                pool.start_span("pool.wait", inside, links=[trace.Link(span.get_span_context())]).end()
            queries.start_span("SELECT", inside, attributes=QUERY).end()
            span.end()
        made.append(Message(encode_spans(memory.get_finished_spans()[:SPANS_A_MESSAGE]).SerializeToString()))
        memory.clear()
    return made


@contextmanager
def target() -> Iterator[str]:
    """Yield the address of something that takes spans and looks at none."""
    server = grpc.server(ThreadPoolExecutor(4))
    take = grpc.unary_unary_rpc_method_handler(lambda _body, _context: b"")
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, {"Export": take})])
    port = server.add_insecure_port(f"{HOST}:0")
    server.start()
    yield f"{HOST}:{port}"
    server.stop(None)


class Collector:
    """Runs from ``with`` to its end, on ports of its own."""

    def __init__(self, otelcol: str, configurations: list[str], jaeger: str) -> None:
        self._environ = {**os.environ, **NOWHERE, "JAEGER_ENDPOINT": jaeger}
        self._folder = tempfile.TemporaryDirectory()
        self.grpc, http, health, self._own = free_ports(4)
        reader = f"{{pull: {{exporter: {{prometheus: {{host: {HOST}, port: {self._own}}}}}}}}}"
        ours = (
            f"receivers::otlp::protocols::grpc::endpoint: {HOST}:{self.grpc}",
            f"receivers::otlp::protocols::http::endpoint: {HOST}:{http}",
            f"extensions::health_check::endpoint: {HOST}:{health}",
            f"extensions::file_storage::directory: {self._folder.name}",
            f"extensions::file_storage::compaction::directory: {self._folder.name}",
            f"service::telemetry::metrics::readers: [{reader}]",
        )
        settings = [*configurations, *(f"yaml:{each}" for each in ours)]
        self._command = [otelcol, *(f"--config={each}" for each in settings)]

    def __enter__(self) -> Self:
        with (Path(self._folder.name) / "log").open("w") as log:
            self._process = subprocess.Popen(self._command, env=self._environ, stdout=log, stderr=log)
        return self

    def __exit__(self, *_exc: object) -> None:
        self._process.terminate()
        self._process.wait(30)
        self._folder.cleanup()

    def check(self) -> None:
        """End this program, with the Collector's log, if it has ended."""
        if self._process.poll() is not None:
            sys.exit((Path(self._folder.name) / "log").read_text())

    def count(self, name: str) -> float:
        """Sum of one of its own metrics."""
        with urlopen(f"http://{HOST}:{self._own}/metrics", timeout=5) as answer:  # nosec B310 # its own
            lines = answer.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def free_ports(count: int) -> list[int]:
    """Ports at which nobody listens."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.create_server((HOST, 0))) for _ in range(count)]
        return [probe.getsockname()[1] for probe in probes]


def send(port: int, ready: list[Message], until: float, refused: list[str]) -> None:
    """One message after the other; what is refused is told and left out."""
    with grpc.insecure_channel(f"{HOST}:{port}") as channel:
        export = channel.unary_unary(f"/{SERVICE}/Export")
        for message in itertools.cycle(ready):
            if time.monotonic() > until:
                return
            try:
                export(message.renewed(), timeout=10, wait_for_ready=True)
            except grpc.RpcError as error:
                refused.append(str(error.code()))


def main() -> int:
    """Measure, and print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("otelcol", help="the Collector's program: otelcol-contrib, or one with the same components")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to measure, default 20")
    parser.add_argument("--file", choices=COUNTED, default="collector.yaml", help="what to run, default collector.yaml")
    parser.add_argument("--over", action="append", default=[], metavar="A::B: VALUE", help="a setting to change")
    options = parser.parse_args()
    counted, checkouts = COUNTED[options.file]
    configurations = [str(HERE / options.file), *(f"yaml:{setting}" for setting in options.over)]
    ready, refused = messages(10), list[str]()
    with target() as jaeger, Collector(options.otelcol, configurations, jaeger) as collector:
        began = time.monotonic()
        sending = (collector.grpc, ready, began + WARM_UP + options.seconds, refused)
        senders = [threading.Thread(target=send, args=sending) for _ in range(SENDERS)]
        for sender in senders:
            sender.start()
        time.sleep(WARM_UP)
        collector.check()
        before, warm = collector.count(counted), time.monotonic()
        for sender in senders:
            sender.join()
        collector.check()
        done, ended = collector.count(counted) - before, time.monotonic()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    took, cores = ended - warm, (used.ru_utime + used.ru_stime) / (ended - began)
    print(
        f"{done * checkouts / took:,.0f} checkouts a second for {took:.0f} s, on {cores:.1f} of {os.cpu_count()} cores "
        f"and {used.ru_maxrss / 1024:.0f} MiB; {len(refused)} messages refused"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
