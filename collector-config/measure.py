"""How many checkouts a second one Collector carries on this machine: ``python collector-config/measure.py OTELCOL``.

Runs the program OTELCOL with collector.yaml, on its usual ports, for some seconds; sends it spans as fast as it takes
them, and takes what it exports in Jaeger's place. Each checkout is a trace of its own: a `pool.checkout`, a query with
its text, and for every tenth a `pool.wait`; 512 spans a message, as the SDK sends them.
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

HERE = Path(__file__).parent
SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"
# What each file counts of its work, and how many checkouts one of that is: there are 21 spans for ten.
COUNTED = {
    "collector.yaml": ("otelcol_exporter_sent_spans", 10 / 21),
    "gateway.yaml": ("otelcol_processor_tail_sampling_global_count_traces_sampled", 1.0),
}
SPANS_A_MESSAGE = 512
SENDERS = 4
STAMP = os.urandom(8)  # the first half of every trace's id, made new in each message sent
WARM_UP = 2.0  # seconds
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


class Stamped(RandomIdGenerator):
    """Ids that are easily changed."""

    def generate_trace_id(self) -> int:  # noqa: D102 - the SDK's
        return int.from_bytes(STAMP + os.urandom(8), "big")


def messages(count: int) -> list[bytes]:
    """Requests of the protocol, encoded beforehand, so that making them is not what is measured."""
    memory = InMemorySpanExporter()
    resource = Resource({"service.name": "shop", "service.instance.id": "1"})
    provider = TracerProvider(resource=resource, id_generator=Stamped())
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


def count(name: str) -> float:
    """Sum of one of the Collector's own metrics."""
    with urlopen("http://127.0.0.1:8888/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def send(ready: list[bytes], until: float, refused: list[str]) -> None:
    """One message after the other; what is refused is told and left out."""
    with grpc.insecure_channel("127.0.0.1:4317") as channel:
        export = channel.unary_unary(f"/{SERVICE}/Export")
        for message in itertools.cycle(ready):
            if time.monotonic() > until:
                return
            try:
                export(message.replace(STAMP, os.urandom(8)), timeout=10, wait_for_ready=True)
            except grpc.RpcError as error:
                refused.append(str(error.code()))


@contextmanager
def collector(otelcol: str, configurations: list[str], environ: dict[str, str]) -> Iterator[None]:
    """Run one, warm."""
    with tempfile.TemporaryDirectory() as folder:
        queues = [f"yaml:extensions::file_storage::{key}: {folder}" for key in ("directory", "compaction::directory")]
        command = [otelcol, *(f"--config={each}" for each in (*configurations, *queues))]
        log = Path(folder) / "log"
        with log.open("w") as output:
            process = subprocess.Popen(command, env={**os.environ, **environ}, stdout=output, stderr=output)
        try:
            send(messages(1), time.monotonic() + WARM_UP, [])
            if process.poll() is not None:
                sys.exit(log.read_text())
            yield
        finally:
            process.terminate()
            process.wait(30)


def main() -> int:
    """Measure, and print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("otelcol", help="the Collector's program: otelcol-contrib, or one with the same components")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to send, default 20")
    parser.add_argument("--file", choices=COUNTED, default="collector.yaml", help="what to run, default collector.yaml")
    parser.add_argument("--over", action="append", default=[], metavar="A::B: VALUE", help="a setting to change")
    options = parser.parse_args()
    counted, checkouts = COUNTED[options.file]
    configurations = [str(HERE / options.file), *(f"yaml:{setting}" for setting in options.over)]
    ready, refused = messages(10), list[str]()
    with target() as jaeger, collector(options.otelcol, configurations, {"JAEGER_ENDPOINT": jaeger}):
        before, began = count(counted), time.monotonic()
        sending = (ready, began + options.seconds, refused)
        senders = [threading.Thread(target=send, args=sending) for _ in range(SENDERS)]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
        done, took = count(counted) - before, time.monotonic() - began
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cores = (used.ru_utime + used.ru_stime) / (took + WARM_UP)
    print(
        f"{done * checkouts / took:,.0f} checkouts a second for {took:.0f} s, on {cores:.1f} of {os.cpu_count()} cores "
        f"and {used.ru_maxrss / 1024:.0f} MiB; {len(refused)} messages refused"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
