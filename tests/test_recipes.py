"""The recipes of docs/recipes.md and docs/extending.md: each is put together as it stands there, and run for real."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.request import urlopen

import psycopg2
import pytest
from psycopg2.extensions import parse_dsn

from tests.support.documents import EXTENDING, RECIPES, clean_environ, make_tables, read, run, write
from tests.support.receivers import HttpReceiver
from tests.support.servers import ClonedServer
from tests.support.waiting import in_thread, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.documents import Document
    from tests.support.otlp_views import Span

pytestmark = pytest.mark.timeout(120)

PROJECTS = read(RECIPES).recipes | read(EXTENDING).recipes
PATIENCE = 40  # seconds, for what takes one or two on a machine with nothing else to do
NEVER = "600000"  # ms, longer than any test: what arrives was flushed at an end
AT_ONCE = "50"


@pytest.fixture(scope="module")
def dsn() -> Iterator[str]:
    with ClonedServer() as server:
        yield server.dsn


@pytest.fixture
def receiver(dsn: str) -> Iterator[HttpReceiver]:
    make_tables(dsn)
    with HttpReceiver() as receiver:
        yield receiver


@pytest.fixture
def environ(dsn: str, receiver: HttpReceiver, tmp_path: Path) -> dict[str, str]:
    """Programs listen on ports that are free, and leave nothing at home."""
    return {
        **clean_environ(),
        **receiver.environ,
        "DATABASE_URL": dsn,
        "FLASK_RUN_PORT": "0",
        "GUNICORN_CMD_ARGS": "--bind 127.0.0.1:0",
        "HOME": str(tmp_path),
        "OTEL_BSP_SCHEDULE_DELAY": AT_ONCE,
        "PYTHONUNBUFFERED": "1",
        "UVICORN_PORT": "0",
    }


def lay_out(recipe: str, folder: Path, *names: str) -> Document:
    """Put a recipe's files in their places."""
    for program in PROJECTS[recipe].programs.values():
        if not names or program.name in names:
            write(program, folder)
    return PROJECTS[recipe]


class Running:
    """A program that goes on until it is told to end, and what it has written so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self.process = process
        self._output = process.stdout
        self._changed = threading.Condition()
        self._text = ""
        self._ended = False
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        for line in self._output:
            with self._changed:
                self._text += line
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait_for(self, pattern: str) -> str:
        """Return the first group of a match in the process's output, and wait for that if necessary."""

        def found() -> Any:
            return re.search(pattern, self._text)

        with self._changed:
            self._changed.wait_for(lambda: found() or self._ended, PATIENCE)
            assert found(), f"{pattern!r} is not in:\n{self._text}"
            written: str = found()[1]
            return written

    def end(self, by: signal.Signals) -> str:
        """Ask it to end; all that it has written."""
        self.process.send_signal(by)
        try:
            self.process.wait(PATIENCE)
        finally:
            self.kill()
        return self._text

    def kill(self) -> None:
        """Leave nothing of it: it leads a session of its own."""
        if self._output.closed:
            return
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join()
        self._output.close()


@contextmanager
def start(line: str, environ: dict[str, str], folder: Path) -> Iterator[Running]:
    """Start a line of a shell as a process that gets this process's signals itself."""
    running = Running(
        subprocess.Popen(
            ["env", *shlex.split(line)],
            cwd=folder,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    )
    try:
        yield running
    finally:
        running.kill()


def get_at_once(base: str, path: str, times: int) -> set[bytes]:
    """Ask for a page in as many threads."""
    bodies = []

    def get() -> None:
        with urlopen(base + path, timeout=PATIENCE) as answer:  # noqa: S310 - an address of our own
            bodies.append(answer.read())

    threads = [threading.Thread(target=get) for _ in range(times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(bodies) == times
    return set(bodies)


def named(name: str) -> Callable[[HttpReceiver], list[Span]]:
    return lambda receiver: [span for span in receiver.spans if span.name == name]


checkouts = named("pool.checkout")


WITH_QUERY = frozenset(("pool.checkout", "select"))
WITHOUT_QUERY = frozenset(("pool.checkout",))
"""The driver's own instrumentation is not installed."""


def wait_for_requests(receiver: HttpReceiver, times: int, children: frozenset[str] = WITH_QUERY) -> None:
    """Until each request's trace is here, with its checkout and its query beside each other."""

    def complete(receiver: HttpReceiver) -> bool:
        traces = [span for span in receiver.spans if span.name.startswith("GET /orders")]
        return len(traces) == times and all(
            {span.name for span in receiver.spans if span.parent_span_id == request.span_id} >= children
            for request in traces
        )

    receiver.wait_for(complete, PATIENCE)


def test_every_recipe_has_its_test() -> None:
    """A new recipe has to be run too."""
    source = Path(__file__).read_text(encoding="utf-8")
    assert {recipe for recipe in PROJECTS if f'lay_out("{recipe}"' not in source} == set()


def test_flask(environ: dict[str, str], receiver: HttpReceiver, tmp_path: Path) -> None:
    """Under opentelemetry-instrument, each request's trace holds its checkout and its query."""
    [line] = lay_out("Flask", tmp_path).shell
    with start(line, environ, tmp_path) as flask:
        address = flask.wait_for(r"Running on (http://[\d.:]+)")
        assert get_at_once(address, "/orders/1", 4) == {b'{"amount":25}\n'}
        wait_for_requests(receiver, 4)
    assert {span.resource["service.name"] for span in receiver.spans} == {"shop"}


def test_sqlalchemy(environ: dict[str, str], receiver: HttpReceiver, tmp_path: Path) -> None:
    """The checkout that timed out is told, in the log too, and its wait links to those that were in its way."""
    recipe = lay_out("SQLAlchemy engine", tmp_path)
    [program], [line] = recipe.programs.values(), recipe.shell
    environ["OTEL_PYTHON_LOGGING_AUTO_INSTRUMENTATION_ENABLED"] = "true"
    assert run(program, environ, tmp_path, line) == program.prints
    holders = [span for span in checkouts(receiver) if span.attributes["otel_pgpool.outcome"] == "released"]
    [refused] = [span for span in checkouts(receiver) if span not in holders]
    [wait] = named("pool.wait")(receiver)
    assert refused.attributes["otel_pgpool.outcome"] == refused.attributes["error.type"] == "timeout"
    assert wait.parent_span_id == refused.span_id
    assert {link.span_id for link in wait.links} == {span.span_id for span in holders}
    assert len(holders) == 2
    [record] = [record for record in receiver.logs if record.attributes.get("otel_pgpool.event") == "timeout"]
    assert record.trace_id == refused.trace_id
    assert {span.resource["service.name"] for span in receiver.spans} == {"orders"}


# A worker loses a signal that comes before it listens to any, as gunicorn's log does not tell.
READY = """

def post_worker_init(worker):
    worker.log.info("Worker ready")
"""


def check_workers(
    environ: dict[str, str],
    receiver: HttpReceiver,
    line: str,
    folder: Path,
    *,
    masters: int,
    children: frozenset[str] = WITH_QUERY,
    is_open_at_fork: bool = True,
) -> None:
    """Serve with two workers; each, and the master where it has a pool to report, is an instance of its own.

    All that they report is exported at their end.
    """
    environ |= {"OTEL_BSP_SCHEDULE_DELAY": NEVER, "OTEL_METRIC_EXPORT_INTERVAL": NEVER}
    instances = 2 + masters
    with (folder / "gunicorn.conf.py").open("a", encoding="utf-8") as conf:
        conf.write(READY)
    with start(line, environ, folder) as gunicorn:
        address = gunicorn.wait_for(r"Listening at: (http://[\d.:]+)")
        gunicorn.wait_for(r"((?:Worker ready(?:.|\n)*){2})")
        assert get_at_once(address, "/orders/1", 8) == {b'{"amount":25}\n'}
        assert gunicorn.end(signal.SIGTERM).count("Traceback") == 0
    wait_for_requests(receiver, 8, children)
    last = {
        (point.resource["service.instance.id"], point.attributes.get("otel_pgpool.path")): point.value
        for point in receiver.metrics
        if point.name == "otel_pgpool.checkouts"
    }
    assert len({instance for instance, _path in last}) == instances
    assert sum(value or 0 for value in last.values()) == 8  # none is counted twice
    forked = [point for point in receiver.metrics if point.attributes.get("otel_pgpool.reason") == "forked"]
    assert {point.value for point in forked} == ({2} if is_open_at_fork else set())
    assert len({point.resource["service.instance.id"] for point in forked}) == (2 if is_open_at_fork else 0)
    owners = {(span.resource["service.instance.id"], pid(span)) for span in checkouts(receiver)}
    assert len(owners) == len({backend for _instance, backend in owners})  # no backend serves two workers


def pid(span: Span) -> int:
    backend: int = span.attributes["otel_pgpool.connection.pid"]
    return backend


def test_gunicorn(environ: dict[str, str], receiver: HttpReceiver, tmp_path: Path) -> None:
    """With the providers made in each worker: the master reports nothing, and what is left is flushed at the end."""
    lay_out("Flask", tmp_path, "shop.py")
    line, _ = lay_out("gunicorn", tmp_path).shell
    check_workers(environ, receiver, line, tmp_path, masters=0)
    assert {span.resource["service.name"] for span in receiver.spans} == {"shop"}


def test_gunicorn_unchanged(environ: dict[str, str], receiver: HttpReceiver, tmp_path: Path) -> None:
    """With the providers made before the fork: the master reports the pool that it has preloaded.

    Everything is exported at the end: a worker forked while the master exports may inherit a lock that is taken.
    """
    lay_out("Flask", tmp_path, "shop.py")
    _, line = PROJECTS["gunicorn"].shell
    check_workers(environ, receiver, line, tmp_path, masters=1)


def test_gunicorn_and_psycopg_pool(environ: dict[str, str], receiver: HttpReceiver, tmp_path: Path) -> None:
    """Each worker opens the pool after the fork: no connection is inherited, and the master reports nothing."""
    line, _ = lay_out("gunicorn and psycopg_pool", tmp_path).shell
    check_workers(environ, receiver, line, tmp_path, masters=0, children=WITHOUT_QUERY, is_open_at_fork=False)


def test_gunicorn_and_psycopg_pool_repaired(environ: dict[str, str], receiver: HttpReceiver, tmp_path: Path) -> None:
    """A pool that the master has opened begins anew in each worker."""
    _, line = lay_out("gunicorn and psycopg_pool", tmp_path, "shop.py", "opened.py").shell
    check_workers(environ, receiver, line, tmp_path, masters=1, children=WITHOUT_QUERY)


CELERYCONFIG = """
import os

broker_url = "filesystem://"
broker_transport_options = {f"data_folder_{way}": "queue" for way in ("in", "out")} | {
    "control_folder": "control",
    "polling_interval": 0.05,
}
os.makedirs("queue", exist_ok=True)
"""
SEND = "import tasks; [tasks.pay.delay(1) for _ in range(6)]"


def test_celery(environ: dict[str, str], receiver: HttpReceiver, dsn: str, tmp_path: Path) -> None:
    """A prefork worker's processes use connections of their own, and lose no span when they end."""
    check_tasks(lay_out("Celery", tmp_path), environ, receiver, dsn, tmp_path)


def test_celery_and_psycopg_pool(environ: dict[str, str], receiver: HttpReceiver, dsn: str, tmp_path: Path) -> None:
    """The same with a pool that each process opens."""
    check_tasks(lay_out("Celery and psycopg_pool", tmp_path), environ, receiver, dsn, tmp_path)


def check_tasks(recipe: Document, environ: dict[str, str], receiver: HttpReceiver, dsn: str, tmp_path: Path) -> None:
    """Let a worker run six tasks."""
    [line] = recipe.shell
    (tmp_path / "celeryconfig.py").write_text(CELERYCONFIG, encoding="utf-8")
    environ["OTEL_BSP_SCHEDULE_DELAY"] = NEVER
    # Sent first: the transport over files lets a running worker read a message that is not written completely.
    subprocess.run([sys.executable, "-c", SEND], cwd=tmp_path, env=environ, check=True, timeout=PATIENCE)
    with start(f"{line} --loglevel INFO", environ, tmp_path) as celery:
        celery.wait_for(r"((?:Task tasks\.pay\S+ succeeded(?:.|\n)*){6})")
        assert "Traceback" not in celery.end(signal.SIGTERM)
    done = checkouts(receiver)
    assert [span.attributes["otel_pgpool.outcome"] for span in done] == ["released"] * 6
    assert {span.resource["service.name"] for span in receiver.spans} == {"tasks"}
    owners = {(span.resource["service.instance.id"], pid(span)) for span in done}
    assert len(owners) == len({backend for _instance, backend in owners})
    with psycopg2.connect(dsn) as conn, conn.cursor() as cur:
        cur.execute("select paid from orders where id = 1")
        assert cur.fetchone() == (True,)
    conn.close()


def check_server(
    environ: dict[str, str], receiver: HttpReceiver, line: str, folder: Path, *, flushes: bool = True
) -> None:
    """Let a server answer four requests at once; each has a checkout of the shop's pool."""
    if flushes:
        environ["OTEL_BSP_SCHEDULE_DELAY"] = NEVER
    (folder / "gunicorn.conf.py").write_text(READY, encoding="utf-8")
    with start(line, environ, folder) as server:
        address = server.wait_for(r"(?:Listening at:|running on) (http://[\d.:]+)")
        if "gunicorn" in line:
            server.wait_for(r"((?:Worker ready(?:.|\n)*){2})")
        assert get_at_once(address, "/orders/1", 4) <= {b'{"amount":25}', b'{"amount": 25}'}
        if not flushes:
            receiver.wait_for(lambda r: len(checkouts(r)) == 4)
        assert "Traceback" not in server.end(signal.SIGTERM)
    assert [span.attributes["otel_pgpool.outcome"] for span in checkouts(receiver)] == ["released"] * 4
    assert {span.attributes["db.client.connection.pool.name"] for span in checkouts(receiver)} == {"shop"}
    assert {span.resource["service.name"] for span in checkouts(receiver)} == {"shop"}


def test_fastapi(environ: dict[str, str], receiver: HttpReceiver, tmp_path: Path) -> None:
    """Each request has a checkout of the asynchronous engine, and its task's name."""
    [line] = lay_out("FastAPI with an asyncio engine", tmp_path).shell
    check_server(environ, receiver, line, tmp_path)
    assert all(span.attributes["otel_pgpool.task.name"] for span in checkouts(receiver))


def variables_of(dsn: str) -> dict[str, str]:
    """Return the variables by which libpq finds a database."""
    server = parse_dsn(dsn)
    found = {f"PG{name.upper()}": server[name] for name in ("host", "port", "user", "password")}
    return {**found, "PGDATABASE": server["dbname"]}


@pytest.mark.parametrize("server", ["gunicorn", "uvicorn"])
def test_django_with_its_own_pool(
    server: str, environ: dict[str, str], receiver: HttpReceiver, dsn: str, tmp_path: Path
) -> None:
    """Each request has a checkout of the pool that Django has opened."""
    [line] = [line for line in lay_out("Django with its own pool", tmp_path).shell if server in line]
    check_server({**environ, **variables_of(dsn)}, receiver, line, tmp_path, flushes=server == "gunicorn")


NO_PSYCOPG3 = 'raise ImportError("stands for an environment without psycopg 3, which Django would prefer")\n'


@pytest.mark.parametrize("processes", [1, 2])
def test_django_on_psycopg2(
    processes: int, environ: dict[str, str], receiver: HttpReceiver, dsn: str, tmp_path: Path
) -> None:
    """Django's own test runner makes, clones and drops its databases through the backend, and `shop.tests` pass."""
    lay_out("Django on psycopg2", tmp_path)
    (tmp_path / "pooled" / "__init__.py").touch()
    (tmp_path / "psycopg.py").write_text(NO_PSYCOPG3, encoding="utf-8")
    environ |= {
        **variables_of(dsn),
        "DJANGO_SETTINGS_MODULE": "shop.settings",
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).with_name("recipes")), environ["PYTHONPATH"]]),
    }
    done = subprocess.run(
        [
            *("opentelemetry-instrument", "python", "-W", "error", "-m", "django", "test", "shop"),
            *("--parallel", str(processes)),
        ],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Ran \d\d tests", done.stderr)
    receiver.wait_for(lambda r: {span.attributes["otel_pgpool.outcome"] for span in checkouts(r)} >= {"released"})
    assert {span.attributes["db.client.connection.pool.name"] for span in checkouts(receiver)} == {"shop"}


def status_of(url: str) -> tuple[int, Any]:
    """Return the status and the JSON of an answer."""
    try:
        with urlopen(url, timeout=PATIENCE) as answer:  # noqa: S310 - an address of our own
            return answer.status, json.load(answer)
    except HTTPError as error:
        with error:
            text = error.read()
        return error.code, json.loads(text) if error.headers.get_content_type() == "application/json" else None


def check_readiness(line: str, listens: str, environ: dict[str, str], folder: Path, server: ClonedServer) -> None:
    """Check that the probe tells of an outage that a request found, and of its end without a further request."""

    def is_ready() -> bool:
        code, told = status_of(f"{address}/ready")
        [health] = told.get("pools", [told])
        assert (health["name"], health["status"]) == ("shop", "ok" if code == 200 else "unreachable")
        assert (code == 200) == (health["reasons"] == []) == (health["duration"] is None)
        return code == 200

    make_tables(server.dsn)
    with start(line, environ, folder) as program:
        address = program.wait_for(listens)
        assert status_of(f"{address}/orders/1") == (200, {"amount": 25})
        assert is_ready()
        server.stop()
        request = in_thread(status_of, f"{address}/orders/1")
        assert wait_until(lambda: not is_ready(), PATIENCE)
        assert request.result(PATIENCE)[0] == 500
        server.start()
        assert wait_until(is_ready, PATIENCE)
        assert status_of(f"{address}/orders/1") == (200, {"amount": 25})


def test_readiness_in_flask(environ: dict[str, str], own_server: ClonedServer, tmp_path: Path) -> None:
    """The probe follows an outage of the database."""
    [line] = lay_out("Readiness in Flask", tmp_path).shell
    environ["DATABASE_URL"] = own_server.dsn
    check_readiness(line, r"Running on (http://[\d.:]+)", environ, tmp_path, own_server)


def test_readiness_in_django(environ: dict[str, str], own_server: ClonedServer, tmp_path: Path) -> None:
    """The probe follows an outage of the database."""
    lay_out("Django on psycopg2", tmp_path, "pooled/base.py")
    [line] = lay_out("Readiness in Django", tmp_path).shell
    (tmp_path / "pooled" / "__init__.py").touch()
    (tmp_path / "psycopg.py").write_text(NO_PSYCOPG3, encoding="utf-8")
    environ |= {
        **variables_of(own_server.dsn),
        "PYTHONPATH": os.pathsep.join([str(tmp_path), environ["PYTHONPATH"]]),
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
    }
    check_readiness(line, r"Listening at: (http://[\d.:]+)", environ, tmp_path, own_server)


SHELF = """
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_pgpool import PgPoolInstrumentor

memory, reader = InMemorySpanExporter(), InMemoryMetricReader()
tracers = TracerProvider()
tracers.add_span_processor(SimpleSpanProcessor(memory))
trace.set_tracer_provider(tracers)
metrics.set_meter_provider(MeterProvider([reader]))

import main
import os
import shelf


def told():
    spans = memory.get_finished_spans()
    memory.clear()
    return [" ".join([span.name, span.attributes.get("otel_pgpool.outcome", "")]).strip() for span in spans]


pool = shelf.Shelf(1, os.environ["DATABASE_URL"])
take, conn = vars(shelf.Shelf)["take"], pool.take(1)
try:
    pool.take(0.01)
except TimeoutError:
    pool.put(conn)
assert told() == ["pool.connect", "pool.wait", "pool.checkout timeout", "pool.checkout released"], told()
assert pool.take(1) is conn

collected = reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
for name, values in (("db.client.connection.count", [1, 0]), ("otel_pgpool.utilization", [1.0])):
    assert [point.value for metric in collected if metric.name == name for point in metric.data.data_points] == values

child = os.fork()
if child == 0:
    other = pool.take(1)
    with other.cursor() as cur:
        cur.execute("select 1")
    pool.put(other)
    os._exit(0 if other is not conn and told() == ["pool.connect", "pool.checkout released"] else 1)
assert os.waitpid(child, 0)[1] == 0
with conn.cursor() as cur:
    cur.execute("select 1")

PgPoolInstrumentor().uninstrument()
assert vars(shelf.Shelf)["take"] is not take
pool.put(conn)
assert told() == ["pool.checkout released"]
"""


def test_another_kind_of_pool(environ: dict[str, str], tmp_path: Path) -> None:
    """The adapter as it is shown reports waits, holds, timeouts and connects, survives a fork, and comes off."""
    lay_out("Another kind of pool", tmp_path)
    done = subprocess.run(
        ["python", "-c", SHELF],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
