"""``otlp.configure()`` from program to wire. Providers belong to a process, so every case runs in one of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import pytest

from tests.support.receivers import GrpcReceiver, HttpReceiver, Mode, Receiver, closed_endpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
SLACK = 5.0  # s; for a process on a busy machine, on top of what is promised

PRELUDE = """
import json, logging, os, sys, threading, time
from opentelemetry import metrics, trace
from opentelemetry._logs import get_logger_provider
from otel_pgpool.otlp import Providers, configure

def work(spans=3):
    "Three spans by default, one metric of one point, two log records."
    tracer = trace.get_tracer("shop", "1.2", schema_url="https://example.org/schema")
    for number in range(spans):
        with tracer.start_as_current_span(f"order {number}"):
            metrics.get_meter("shop").create_counter("orders").add(1)
    for number in range(2):
        logging.getLogger("otel_pgpool").warning("record %d", number)

def tell(**values):
    print(json.dumps(values), flush=True)

def in_child(function, *arguments):
    "Return what a function returns in a process of its own."
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, json.dumps(function(*arguments)).encode())
        os._exit(0)
    os.wait()
    return json.loads(os.read(read, 65_536))
"""


# What shall arrive has more time than by default: a third of five seconds for each signal is little on a busy machine.
PATIENT = "Providers.shutdown.__defaults__ = (30.0,)\n"


@pytest.fixture(params=[GrpcReceiver, HttpReceiver], ids=["grpc", "http"])
def receiver(request: pytest.FixtureRequest) -> Iterator[Receiver]:
    with request.param() as receiver:
        yield receiver


@pytest.fixture
def http() -> Iterator[HttpReceiver]:
    with HttpReceiver() as receiver:
        yield receiver


@contextmanager
def started(script: str, environ: dict[str, str], *, patient: bool = True) -> Iterator[subprocess.Popen[str]]:
    """Start a program in a clean environment, with warnings as errors; kill it if the test leaves it behind."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("OTEL_") and not name.lower().endswith("_proxy")
    }
    with subprocess.Popen(
        [
            sys.executable,
            "-W",
            "error",
            "-W",
            "ignore:This process:DeprecationWarning",
            "-c",
            PRELUDE + (PATIENT if patient else "") + textwrap.dedent(script),
        ],
        env={**inherited, "PYTHONPATH": str(ROOT), **environ},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def run(script: str, environ: dict[str, str] | None = None, *, patient: bool = True) -> tuple[dict[str, Any], str]:
    """Run a program to its end; return what it printed, and its stderr without the records of ``work()``."""
    with started(script, environ or {}, patient=patient) as process:
        out, err = process.communicate(timeout=40)
    assert process.returncode == 0, err
    return (json.loads(out) if out else {}), beside_the_records(err)


def beside_the_records(err: str) -> str:
    return "".join(line for line in err.splitlines(keepends=True) if not line.startswith("record "))


def test_all_three_signals_arrive(receiver: Receiver) -> None:
    """Spans, metrics and logs of a configured program are at the endpoint when its ``with`` block has ended."""
    told, err = run(
        """
        with configure("shop") as providers:
            tracer = trace.get_tracer("shop", "1.2", schema_url="https://example.org/schema")
            with tracer.start_as_current_span("first") as first:
                pass
            link = trace.Link(first.get_span_context(), {"held": 0.5})
            with tracer.start_as_current_span("parent") as parent:
                with tracer.start_as_current_span("child", kind=trace.SpanKind.CLIENT, links=[link]) as child:
                    child.set_attributes({"count": 2, "ratio": 0.5, "ok": True, "names": ["a", "b"]})
                    child.add_event("retry", {"attempt": 1})
                    child.set_status(trace.StatusCode.ERROR, "broke")
                    metrics.get_meter("shop").create_histogram(
                        "wait", unit="s", description="the wait", explicit_bucket_boundaries_advisory=[0.1, 1.0]
                    ).record(0.5, {"pool": "shop"})
                    metrics.get_meter("shop").create_counter("orders", unit="{order}").add(2)
                    metrics.get_meter("shop").create_up_down_counter("open").add(3)
        tell(undelivered=providers.undelivered._asdict())
        """,
        receiver.environ,
    )
    first, child, parent = receiver.spans
    assert (first.name, child.name, parent.name) == ("first", "child", "parent")
    assert (child.kind, child.status, child.status_description) == ("CLIENT", "ERROR", "broke")
    assert (child.trace_id, child.parent_span_id) == (parent.trace_id, parent.span_id)
    assert (parent.kind, parent.status, parent.parent_span_id) == ("INTERNAL", "UNSET", "")
    assert parent.start <= child.start <= child.events[0].time <= child.end <= parent.end
    assert child.attributes == {"count": 2, "ratio": 0.5, "ok": True, "names": ["a", "b"]}
    assert [(event.name, event.attributes) for event in child.events] == [("retry", {"attempt": 1})]
    assert [(link.span_id, link.attributes) for link in child.links] == [(first.span_id, {"held": 0.5})]
    assert (child.scope.name, child.scope.version, child.scope.schema_url) == (
        "shop",
        "1.2",
        "https://example.org/schema",
    )
    wait, orders, opened = (next(p for p in receiver.metrics if p.name == name) for name in ("wait", "orders", "open"))
    assert (wait.type, wait.unit, wait.description, wait.temporality) == ("histogram", "s", "the wait", "CUMULATIVE")
    assert (wait.bounds, wait.bucket_counts, wait.sum, wait.count) == ((0.1, 1.0), (0, 1, 0), 0.5, 1)
    assert [(e.value, e.trace_id, e.span_id) for e in wait.exemplars] == [(0.5, child.trace_id, child.span_id)]
    assert wait.attributes == {"pool": "shop"}
    assert (orders.type, orders.monotonic, orders.value, orders.unit) == ("sum", True, 2, "{order}")
    assert (opened.type, opened.monotonic, opened.value) == ("sum", False, 3)
    assert {item.resource["service.name"] for item in (*receiver.spans, *receiver.metrics)} == {"shop"}
    assert told["undelivered"] == {"spans": 0, "metric_points": 0, "log_records": 0}
    assert err == ""


def test_log_records_carry_their_trace_and_their_extra(receiver: Receiver) -> None:
    """Records of ``otel_pgpool`` arrive from INFO up, in the context they were logged in; other loggers' do not."""
    run(
        """
        import io
        seen = io.StringIO()
        logging.basicConfig(stream=seen)
        log = logging.getLogger("otel_pgpool")
        with configure("shop"):
            with trace.get_tracer("shop").start_as_current_span("checkout"):
                extra = {"otel.event.name": "otel_pgpool.long_hold", "pid": 7, "who": ["a"]}
                logging.getLogger("otel_pgpool.shop").warning("held %.1f s", 1.5, extra=extra)
            log.debug("unheard")
            log.info("returned")
            try:
                raise LookupError("gone")
            except LookupError:
                logging.getLogger("otel_pgpool.demo").exception("lost")
            logging.getLogger("other").error("not ours")
        assert log.handlers == [] and log.level == logging.NOTSET
        assert "WARNING:otel_pgpool.shop:held 1.5 s" in seen.getvalue()
        """,
        receiver.environ,
    )
    held, returned, lost = receiver.logs
    [span] = receiver.spans
    assert (held.body, held.severity_text, held.severity_number) == ("held 1.5 s", "WARN", 13)
    assert (held.event_name, returned.event_name) == ("otel_pgpool.long_hold", "")
    assert held.attributes == {"pid": 7, "who": ["a"]}
    assert (held.trace_id, held.span_id) == (span.trace_id, span.span_id)
    assert span.start - 1_000 <= held.time <= span.end  # the clock of logging is a float: it may be some 100 ns off
    assert held.resource["service.name"] == "shop"
    assert (returned.body, returned.severity_text, returned.trace_id) == ("returned", "INFO", "")
    assert (lost.severity_text, lost.scope.name) == ("ERROR", "otel_pgpool.demo")
    assert (lost.attributes["exception.type"], lost.attributes["exception.message"]) == ("LookupError", "gone")


def test_standard_variables_are_honoured(http: HttpReceiver) -> None:
    """Each signal can have a protocol and an endpoint of its own; headers, compression, names and sampler are read."""
    with GrpcReceiver() as grpc:
        run(
            "with configure(): work()",
            {
                **grpc.environ,
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{http.endpoint}/v1/traces",
                "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION": "gzip",
                "OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=blue",
                "OTEL_SERVICE_NAME": "from-env",
                "OTEL_RESOURCE_ATTRIBUTES": "team=db,service.name=less",
                "OTEL_LOGS_EXPORTER": "none",
            },
        )
        assert {span.resource["service.name"] for span in http.spans} == {"from-env"}
        assert {span.resource["team"] for span in http.spans} == {"db"}
        assert [request["content-encoding"] for request in http.requests] == ["gzip"]
        assert {request["x-tenant"] for request in (*http.requests, *grpc.requests)} == {"blue"}
        assert [point.name for point in grpc.metrics] == ["orders"]
        assert (http.metrics, grpc.spans, grpc.logs) == ([], [], [])


def test_argument_comes_before_the_environment(http: HttpReceiver) -> None:
    """``service_name`` wins over the variables; a span that was not sampled is neither sent nor counted as missing."""
    told, _ = run(
        """
        with configure("argument") as providers:
            work()
        tell(undelivered=providers.undelivered)
        """,
        {**http.environ, "OTEL_SERVICE_NAME": "from-env", "OTEL_TRACES_SAMPLER": "always_off"},
    )
    assert {record.resource["service.name"] for record in http.logs} == {"argument"}
    assert http.spans == []
    assert told["undelivered"] == [0, 0, 0]


def test_refuses_to_replace_a_provider() -> None:
    """Where one of the three providers is set, configure() names it and changes nothing at all."""
    told, _ = run(
        """
        from opentelemetry._logs import set_logger_provider
        from opentelemetry.sdk._logs import LoggerProvider
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.trace import TracerProvider
        def state():
            log = logging.getLogger("otel_pgpool")
            return [trace.get_tracer_provider(), metrics.get_meter_provider(), get_logger_provider(),
                    log.level, list(log.handlers), threading.active_count()]
        def configure_beside(set_provider, provider):
            set_provider(provider())
            before = state()
            try:
                configure("shop")
            except RuntimeError as error:
                return {"error": str(error), "same": before == state()}
        tell(tracer=in_child(configure_beside, trace.set_tracer_provider, TracerProvider),
             meter=in_child(configure_beside, metrics.set_meter_provider, MeterProvider),
             logger=in_child(configure_beside, set_logger_provider, LoggerProvider))
        """
    )
    for taken, refused in told.items():
        assert f"{taken} provider" in refused["error"]
        assert "do not call configure()" in refused["error"]
        assert refused["same"]


def test_refuses_a_second_configure(http: HttpReceiver) -> None:
    """The second call is refused, naming all three, and the first one's providers go on working."""
    told, _ = run(
        """
        providers = configure("shop")
        try:
            configure("shop")
        except RuntimeError as error:
            tell(error=str(error))
        work()
        providers.shutdown()
        """,
        http.environ,
    )
    assert "tracer and meter and logger" in told["error"]
    assert (len(http.spans), len(http.logs)) == (3, 2)


BAD_INPUT = {
    "' '": ("service_name", "' '", "non-empty string"),
    "5": ("service_name", "5", "a non-empty string", "None"),
    "b'shop'": ("service_name", "b'shop'", "a non-empty string"),
    "span_exporters=5": ("span_exporters", "5", "a list of exporters"),
    "log_exporters=[print]": ("log_exporters", "print", "a list of exporters", "export()"),
    "metric_exporters='otlp'": ("metric_exporters", "'otlp'", "a list of exporters"),
    "otlp='no'": ("otlp", "'no'", "True or False"),
}


def test_bad_input_is_refused() -> None:
    """A bad value is refused with the name of the option, the value and what is accepted, and nothing is set."""
    told, _ = run(
        f"""
        errors = {{}}
        for arguments in {[*BAD_INPUT]}:
            try:
                eval(f"configure({{arguments}})")
            except ValueError as error:
                errors[arguments] = str(error)
        tell(errors=errors, untouched="Proxy" in type(trace.get_tracer_provider()).__name__)
        """
    )
    assert told["errors"].keys() == BAD_INPUT.keys()
    for arguments, named in BAD_INPUT.items():
        assert [part for part in named if part not in told["errors"][arguments]] == []
    assert told["untouched"]


@pytest.mark.parametrize(
    ("variables", "arrived", "said"),
    [
        ({"TRACES_EXPORTER": "zipkin"}, (0, 1, 2), ["OTEL_TRACES_EXPORTER=zipkin: ; it exports no traces"]),
        ({"LOGS_EXPORTER": "otlp, x"}, (3, 1, 2), ["OTEL_LOGS_EXPORTER=otlp, x: ; it exports logs to otlp only"]),
        ({"TRACES_EXPORTER": "prometheus"}, (0, 1, 2), ["OTEL_TRACES_EXPORTER=prometheus: ; it exports no traces"]),
        (
            {"CONFIG_FILE": "otel.yaml"},
            (3, 1, 2),
            ["OTEL_CONFIG_FILE=otel.yaml: ; does not read this file"],
        ),
        ({"LOGS_EXPORTER": "NONE"}, (3, 1, 0), []),
        ({"LOGS_EXPORTER": " , "}, (3, 1, 0), []),
        ({"LOGS_EXPORTER": ""}, (3, 1, 2), []),
        ({"TRACES_EXPORTER": "otlp_proto_http", "EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, (3, 1, 2), []),
        (
            {"EXPORTER_OTLP_PROTOCOL": "http/json"},
            (3, 1, 2),
            ["OTEL_EXPORTER_OTLP_PROTOCOL=http/json: ; http/protobuf"],
        ),
    ],
)
def test_variables_of_others_stop_no_program(
    http: HttpReceiver, variables: dict[str, str], arrived: tuple[int, int, int], said: list[str]
) -> None:
    """A value that is not supported is logged once, and everything else is exported."""
    environ = {f"OTEL_{name}": value for name, value in variables.items()}
    _told, err = run("with configure('shop'): work()", {**http.environ, **environ})
    logs = [record for record in http.logs if not record.body.startswith("OTEL_")]  # what is said here is exported too
    assert (len(http.spans), len(http.metrics), len(logs)) == arrived
    lines = beside_the_records(err).splitlines()
    assert len(lines) == len(said), err
    for line, (variable, instead) in zip(lines, (each.split("; ") for each in said), strict=True):
        assert line.startswith(variable)
        assert instead in line


@pytest.mark.parametrize("value", ["console", "otlp,console", " Console , OTLP ", "none,console"])
def test_console(http: HttpReceiver, value: str) -> None:
    """All signals are written to the console, alone or in addition to OTLP, and nothing is logged about that."""
    signals = {f"OTEL_{signal}_EXPORTER": value for signal in ("TRACES", "METRICS", "LOGS")}
    with started("with configure('shop'): work()", {**http.environ, **signals}) as process:
        out, err = process.communicate(timeout=40)
    assert beside_the_records(err) == ""
    assert (out.count('"name": "order '), out.count('"name": "orders"'), out.count('"body": "record ')) == (3, 1, 2)
    over_otlp = (3, 1, 2) if "otlp" in value.lower() else (0, 0, 0)
    assert (len(http.spans), len(http.metrics), len(http.logs)) == over_otlp


def test_prometheus(http: HttpReceiver) -> None:
    """Metrics are offered to Prometheus and sent over OTLP; a second program, whose port is taken, only sends them."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environ = {**http.environ, "OTEL_METRICS_EXPORTER": "otlp,prometheus", "OTEL_EXPORTER_PROMETHEUS_PORT": str(port)}
    with started("with configure('shop'): work(); tell(ready=True); sys.stdin.readline()", environ) as first:
        assert first.stdout
        assert first.stdout.readline()
        with urlopen(f"http://localhost:{port}/metrics") as answer:
            assert b"\norders_total{" in answer.read()
        _told, err = run("with configure('shop'): work()", environ)
        first.communicate("\n")
    [line] = beside_the_records(err).splitlines()
    assert line.startswith("OTEL_METRICS_EXPORTER=otlp,prometheus: configure() cannot use 'prometheus': ")
    assert line.endswith("; it exports metrics to otlp only")
    assert [point.name for point in http.metrics] == ["orders", "orders"]
    assert (len(http.spans), len([each for each in http.logs if each.body.startswith("record ")])) == (6, 4)


def test_protocol_that_nobody_knows(receiver: Receiver) -> None:
    """For one signal: the default is used, and the others are not concerned."""
    _told, err = run(
        "with configure('shop'): work()",
        {**receiver.environ, "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL": "udp", "OTEL_LOGS_EXPORTER": "otlp"},
    )
    assert "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL=udp: configure() supports grpc and http/protobuf; grpc is used" in err
    assert (len(receiver.spans), len(receiver.metrics)) == (3, 1)


def test_timeouts_are_numbers_of_seconds(http: HttpReceiver) -> None:
    """Others are refused by name, and shut nothing down; infinite ones are waited out like any other."""
    told, err = run(
        """
        providers = configure("shop")
        refused = []
        for call in (providers.flush, providers.shutdown):
            for timeout in ("5", -1, float("nan"), None):
                try:
                    call(timeout)
                except ValueError as error:
                    refused.append(str(error))
        work()
        flushed = providers.flush(float("inf"))
        providers.shutdown(float("inf"))
        tell(refused=refused, flushed=flushed)
        """,
        http.environ,
    )
    assert len(told["refused"]) == 8
    assert all(message.startswith("timeout must be a number of seconds") for message in told["refused"])
    assert told["flushed"]
    assert (len(http.spans), len(http.logs), err) == (3, 2, "")


def test_missing_packages_name_the_extra() -> None:
    """Without the SDK or the exporter that is asked for, the error says what is missing and how to get it."""
    told, _ = run(
        """
        def configure_without(missing, protocol):
            os.environ["OTEL_EXPORTER_OTLP_PROTOCOL"] = protocol
            for name in [name for name in sys.modules if name.startswith(("opentelemetry.sdk", "otel_pgpool"))]:
                del sys.modules[name]
            sys.modules[missing] = None
            try:
                from otel_pgpool.otlp import configure
                configure()
            except ModuleNotFoundError as error:
                return [str(error), error.name]
        missing = [("opentelemetry.exporter.otlp.proto.grpc", "grpc"),
                   ("opentelemetry.exporter.otlp.proto.http", "http/protobuf"), ("opentelemetry.sdk", "grpc")]
        tell(**{each[0]: in_child(configure_without, *each) for each in missing})
        """
    )
    assert len(told) == 3
    for missing, (error, name) in told.items():
        assert "otel-pgpool[otlp]" in error
        assert name.startswith(missing)


def test_importing_the_package_imports_neither_this_nor_the_sdk() -> None:
    """A pool without ``otlp`` needs no SDK."""
    program = "import sys, otel_pgpool; print(*sys.modules)"
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True)
    imported = result.stdout.split()
    assert "otel_pgpool" in imported
    assert [name for name in imported if name.startswith(("opentelemetry.sdk", "grpc", "otel_pgpool.otlp"))] == []


def test_disabled_sdk_does_nothing(http: HttpReceiver) -> None:
    """Under OTEL_SDK_DISABLED=true everything may be called, nothing is sent, no thread is started."""
    told, err = run(
        """
        with configure("shop") as providers:
            work()
            tell(threads=threading.active_count(), flushed=providers.flush(), undelivered=providers.undelivered)
        """,
        {**http.environ, "OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_PROTOCOL": "nonsense"},
    )
    assert told == {"threads": 1, "flushed": True, "undelivered": [0, 0, 0]}
    assert http.requests == []
    assert "nonsense" not in err


def test_other_exporters_work_beside_otlp_or_alone() -> None:
    """Exporters given as arguments get everything; with otlp=False there are no others, whatever the variables say."""
    with closed_endpoint() as endpoint:
        told, _ = run(
            """
            from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter
            from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
            spans, logs = InMemorySpanExporter(), InMemoryLogRecordExporter()
            with configure("shop", span_exporters=[spans], log_exporters=[logs], otlp=False) as providers:
                work()
            tell(spans=len(spans.get_finished_spans()), logs=len(logs.get_finished_logs()),
                 undelivered=providers.undelivered)
            """,
            {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_TRACES_EXPORTER": "otlp,console"},
        )
    assert told == {"spans": 3, "logs": 2, "undelivered": [0, 0, 0]}


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_endpoint_that_refuses_is_counted_and_bounded(protocol: str) -> None:
    """Without an endpoint, shutdown ends in its time, every item is counted, and each signal logs one record."""
    with closed_endpoint() as endpoint:
        told, err = run(
            """
            providers = configure("shop")
            work(spans=20)
            start = time.monotonic()
            providers.shutdown(timeout=1)
            tell(took=time.monotonic() - start, undelivered=providers.undelivered)
            """,
            {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol},
        )
    assert told["undelivered"] == [20, 1, 2]
    assert told["took"] < 1 + SLACK
    assert 1 <= len(err.splitlines()) <= 3, err


def test_endpoint_that_hangs_does_not_hold_up_shutdown(receiver: Receiver) -> None:
    """Shutdown ends in its time, what was queued or overran the queue is counted, and other exporters got it all."""
    receiver.mode = Mode.HANG
    told, err = run(
        """
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        spans = InMemorySpanExporter()
        providers = configure("shop", span_exporters=[spans])
        logging.getLogger("opentelemetry.sdk").setLevel(logging.ERROR)  # the queue that is made to overrun
        for _ in range(5):
            work(spans=10)
            providers.tracer_provider._active_span_processor._span_processors[0].force_flush()
        flushed = providers.flush(timeout=0.2)
        start = time.monotonic()
        providers.shutdown(timeout=1.5)
        providers.shutdown(timeout=1.5)
        tell(took=time.monotonic() - start, flushed=flushed, spans=len(spans.get_finished_spans()),
             undelivered=providers.undelivered)
        """,
        {**receiver.environ, "OTEL_BSP_MAX_QUEUE_SIZE": "16", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "16"},
    )
    assert told["took"] < 1.5 + SLACK
    assert not told["flushed"]
    assert told["spans"] == 50
    assert told["undelivered"][0] == 50
    assert told["undelivered"][1] >= 1
    assert told["undelivered"][2] == 10
    assert receiver.requests
    assert len(err.splitlines()) <= 4, err  # one of each exporter that is cut off, and the count of the undelivered


def test_interpreter_exit_flushes_and_is_bounded(receiver: Receiver) -> None:
    """A program that never calls shutdown() loses nothing at its exit, and ends although the endpoint hangs."""
    run("configure('shop'); work()", receiver.environ)
    assert (len(receiver.spans), len(receiver.metrics), len(receiver.logs)) == (3, 1, 2)
    receiver.mode = Mode.HANG
    told, _ = run("configure('shop'); work(); tell(end=time.monotonic())", receiver.environ, patient=False)
    assert time.monotonic() - told["end"] < 5 + SLACK


def test_recovery_delivers_what_was_kept(receiver: Receiver) -> None:
    """An endpoint that is unavailable for a moment costs a retry; flush() says False only when something was lost."""
    receiver.mode = Mode.REJECT
    with started(
        """
        providers = configure("shop")
        work()
        tell(flushed=providers.flush(), undelivered=providers.undelivered)
        sys.stdin.readline()
        work()
        tell(flushed=providers.flush(), undelivered=providers.undelivered)
        providers.shutdown()
        """,
        {**receiver.environ, "OTEL_METRIC_EXPORT_INTERVAL": "600000"},
    ) as process:
        assert process.stdout
        assert json.loads(process.stdout.readline()) == {"flushed": False, "undelivered": [3, 1, 2]}
        receiver.mode = Mode.UNAVAILABLE
        seen = len(receiver.requests)
        assert process.stdin
        print(file=process.stdin, flush=True)
        receiver.wait_for(lambda r: len(r.requests) >= seen + 3)
        receiver.mode = Mode.ACCEPT
        told = json.loads(process.stdout.readline())
        assert (told["flushed"], told["undelivered"]) == (True, [3, 1, 2]), told
        _, err = process.communicate(timeout=20)
    assert (len(receiver.spans), len(receiver.logs)) == (3, 2)
    assert len(beside_the_records(err).splitlines()) <= 6, err


def test_garbage_for_an_answer_harms_nothing(receiver: Receiver) -> None:
    """A program whose endpoint answers nonsense runs to its end."""
    receiver.mode = Mode.GARBAGE
    told, _ = run(
        """
        with configure("shop") as providers:
            work()
        tell(undelivered=providers.undelivered)
        """,
        receiver.environ,
    )
    assert len(told["undelivered"]) == 3


def test_forked_child_exports_by_itself(http: HttpReceiver) -> None:
    """After os.fork() the child's own threads export all its signals, over connections and with counts of its own."""
    http.mode = Mode.REJECT
    with started(
        """
        providers = configure("shop")
        tracer, counter = trace.get_tracer("shop"), metrics.get_meter("shop").create_counter("orders")
        tracer.start_span("lost").end()
        providers.flush()
        tell(undelivered=providers.undelivered)
        sys.stdin.readline()
        tracer.start_span("before").end()
        assert providers.flush()
        if os.fork():
            assert os.wait()[1] == 0
            tracer.start_span("after").end()
            assert providers.flush()
            providers.shutdown()
            tell(undelivered=providers.undelivered)
        else:
            assert providers.undelivered == (0, 0, 0)
            with tracer.start_as_current_span("child"):
                counter.add(1, {"who": "child"})
                logging.getLogger("otel_pgpool").warning("child")
            sys.stdin.readline()
            assert providers.flush()
            while providers.undelivered != (0, 0, 0):  # the next collection may be on its way
                time.sleep(0.01)
            os._exit(0)
        """,
        {
            **http.environ,
            "OTEL_BSP_SCHEDULE_DELAY": "20",
            "OTEL_BLRP_SCHEDULE_DELAY": "20",
            "OTEL_METRIC_EXPORT_INTERVAL": "1000",  # a child that is forked in an export of metrics has none
        },
    ) as process:
        assert process.stdin
        assert process.stdout
        assert json.loads(process.stdout.readline()) == {"undelivered": [1, 0, 0]}
        http.mode = Mode.ACCEPT
        print(file=process.stdin, flush=True)
        http.wait_for(lambda r: any(span.name == "before" for span in r.spans))
        parents_connections = _connections(http)
        http.wait_for(lambda r: any(span.name == "child" for span in r.spans))
        http.wait_for(lambda r: any(record.body == "child" for record in r.logs))
        http.wait_for(lambda r: any(point.attributes == {"who": "child"} for point in r.metrics))
        childs_connections = _connections(http) - parents_connections
        print(file=process.stdin, flush=True)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert json.loads(out) == {"undelivered": [1, 0, 0]}
    assert (len(parents_connections), len(childs_connections)) == (1, 1)
    assert _connections(http) == parents_connections | childs_connections  # the child left the parent's alone
    assert [span.name for span in http.spans] == ["before", "child", "after"]
    before, child, after = (span.resource["service.instance.id"] for span in http.spans)
    assert before == after != child


def _connections(http: HttpReceiver) -> set[str]:
    return {request[":peer"] for request in http.requests if request[":signal"] == "traces"}
