"""How many checkouts a second one Collector carries on this machine: ``python collector-config/measure.py OTELCOL``.

Runs the program OTELCOL with collector.yaml, on its usual ports, for some seconds; sends it spans as fast as it takes
them, and takes what it exports in Jaeger's place. For each checkout there are a `pool.checkout` and a query's span with
its text, and for every tenth a `pool.wait`, 512 spans a message, as the SDK sends them.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import urlopen

import grpc
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

if TYPE_CHECKING:
    from collections.abc import Iterator

CONFIGURATION = Path(__file__).with_name("collector.yaml")
SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"
SPANS_OF_TEN = 21
SPANS_A_MESSAGE = 512
SENDERS = 4
WARM_UP = 2.0  # seconds
SERVER = {"db.system.name": "postgresql", "db.namespace": "shop", "server.address": "postgres", "server.port": 5432}
CHECKOUT = {
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


def messages(count: int) -> list[bytes]:
    """Requests of the protocol, encoded beforehand, so that making them is not what is measured."""
    memory = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource({"service.name": "shop", "service.instance.id": "1"}))
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
        made.append(encode_spans(memory.get_finished_spans()[:SPANS_A_MESSAGE]).SerializeToString())
        memory.clear()
    return made


@contextmanager
def target() -> Iterator[str]:
    """Yield the address of something that takes spans and looks at none."""
    server = grpc.server(ThreadPoolExecutor(4))
    take = grpc.unary_unary_rpc_method_handler(lambda _body, _context: b"")
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, {"Export": take})])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


def spans_sent() -> float:
    """How many spans the Collector has exported, by its own account."""
    with urlopen("http://127.0.0.1:8888/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("otelcol_exporter_sent_spans"))


def send(ready: list[bytes], until: float, refused: list[str]) -> None:
    """One message after the other; what is refused is told and left out."""
    with grpc.insecure_channel("127.0.0.1:4317") as channel:
        export = channel.unary_unary(f"/{SERVICE}/Export")
        for message in itertools.cycle(ready):
            if time.monotonic() > until:
                return
            try:
                export(message, timeout=10, wait_for_ready=True)
            except grpc.RpcError as error:
                refused.append(str(error.code()))


def main() -> int:
    """Measure, and print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("otelcol", help="the Collector's program: otelcol-contrib, or one with the same components")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to send, default 20")
    options = parser.parse_args()
    ready, refused = messages(50), list[str]()
    with target() as jaeger, tempfile.TemporaryDirectory() as folder:
        queues = [f"yaml:extensions::file_storage::{key}: {folder}" for key in ("directory", "compaction::directory")]
        command = [options.otelcol, *(f"--config={each}" for each in (CONFIGURATION, *queues))]
        with (Path(folder) / "log").open("w") as log:
            collector = subprocess.Popen(command, env={**os.environ, "JAEGER_ENDPOINT": jaeger}, stdout=log, stderr=log)
        try:
            send(ready, time.monotonic() + WARM_UP, refused)
            if collector.poll() is not None:
                sys.exit((Path(folder) / "log").read_text())
            before, began = spans_sent(), time.monotonic()
            until = began + options.seconds
            senders = [threading.Thread(target=send, args=(ready, until, refused)) for _ in range(SENDERS)]
            for sender in senders:
                sender.start()
            for sender in senders:
                sender.join()
            sent, took = spans_sent() - before, time.monotonic() - began
        finally:
            collector.terminate()
            collector.wait(30)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cores = (used.ru_utime + used.ru_stime) / (took + WARM_UP)
    print(
        f"{sent / took * 10 / SPANS_OF_TEN:,.0f} checkouts ({sent / took:,.0f} spans) a second for {took:.0f} s, "
        f"on {cores:.1f} of {os.cpu_count()} cores and {used.ru_maxrss / 1024:.0f} MiB; {len(refused)} messages refused"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
