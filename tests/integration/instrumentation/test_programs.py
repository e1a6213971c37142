"""Programs as users have them, none of which knows of telemetry, seen from the outside: by what OTLP brings."""

from __future__ import annotations

import json
import signal
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.support.program_signals import COUNT, Answer, ask_shop, assert_traced, last, logs, points_of, traces_of
from tests.support.programs import PROGRAMS, UNDER_OTEL, backends, database, locked, running, until_held_up
from tests.support.receivers import HttpReceiver

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from otel_pgpool.demo.postgres import PostgresServer

LIMIT = "QueuePool limit of size 2 overflow 0 reached"
POOL_TIMEOUT = 0.3


@pytest.fixture
def receiver() -> Iterator[HttpReceiver]:
    with HttpReceiver() as receiver:
        yield receiver


@pytest.mark.parametrize("program", sorted(path.name for path in PROGRAMS.glob("*.py")))
def test_a_program_knows_of_no_telemetry(program: str) -> None:
    """It is ordinary code; one of them uses our pool, and that is all."""
    text = (PROGRAMS / program).read_text().lower()
    if program == "crowd_on_ours.py":
        text = text.replace("from otel_pgpool import connectionpool\n", "", 1)
    assert [word for word in ("otel", "opentelemetry", "telemetry", "span", "metric") if word in text] == []


def test_flask(receiver: HttpReceiver, dsn: str) -> None:
    """Of requests in parallel, each one's trace holds its own checkout, with its own queries within."""
    with (
        database(dsn, "flask_shop") as beside,
        running(*UNDER_OTEL, "python", "shop.py", receiver=receiver, beside=beside) as program,
        ThreadPoolExecutor(8) as clients,
    ):
        port = int(program.line())
        with locked(beside, "stock"):
            orders = [clients.submit(ask_shop, port, "orders", number) for number in range(1, 9)]
            held_up = until_held_up(beside, 8)
        answers = [each.result() for each in orders]
        traces = traces_of(receiver, answers)
        program.end(signal.SIGINT)
    assert {answer.backend for answer in answers} == held_up
    for answer in answers:
        assert_traced(traces[answer.trace_id], answer)
    connects = [span for trace in traces.values() for span in trace if span.name == "pool.connect"]
    assert len(connects) == 7  # the pool was made with one


# gunicorn: a master that has made the pool, and two workers forked from it

INSTANCE = "service.instance.id"
WORKERS = 2
CLASSES = {
    "sync": ("--worker-class", "sync"),
    # As many connections as threads, so that a worker takes no request that it cannot serve at once.
    "gthread": ("--worker-class", "gthread", "--threads", "4", "--worker-connections", "4"),
}
AT_ONCE = {"sync": 1, "gthread": 4}
"""Requests that one worker serves at the same time."""

SILENT_BEFORE_THE_END = {
    f"OTEL_{what}": "600000" for what in ("BSP_SCHEDULE_DELAY", "BLRP_SCHEDULE_DELAY", "METRIC_EXPORT_INTERVAL")
}
"""A worker inherits what the SDK's exporters have opened in the master, and what they have locked at that moment."""


class Fleet(NamedTuple):
    """What one run has left."""

    receiver: HttpReceiver
    carts: list[Answer]
    """All at the same time, as many as the workers could serve."""
    orders: list[Answer]
    of_master: set[int]
    """Backends that were not the workers' while all the carts were held up."""

    @property
    def instances(self) -> dict[int, str]:
        """Under which id each worker has reported what it served."""
        workers = {answer.trace_id: answer.worker for answer in [*self.carts, *self.orders]}
        pairs = {
            (workers[span.trace_id], span.resource[INSTANCE])
            for span in self.receiver.spans
            if span.trace_id in workers
        }
        assert len(pairs) == WORKERS, pairs
        return dict(pairs)

    def at_last(self, name: str, *attributes: str) -> dict[str, float]:
        """Return the last report of each instance: a value, or the number of records of a histogram."""
        return {
            point.resource[INSTANCE]: point.value or point.count or 0
            for point in points_of(self.receiver, name, *attributes)
        }

    def total(self, name: str, *attributes: str) -> float:
        return sum(self.at_last(name, *attributes).values())


@pytest.fixture(scope="module", params=CLASSES)
def fleet(
    request: pytest.FixtureRequest, server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    """Carts that keep all workers busy at the same time, and orders; then a clean end."""
    at_once = WORKERS * AT_ONCE[request.param]
    with (
        HttpReceiver() as receiver,
        socket.create_server(("127.0.0.1", 0)) as listener,
        database(server.dsn, f"{request.param}_shop") as beside,
        running(
            *(*UNDER_OTEL, "gunicorn", "--preload", "--workers", str(WORKERS), *CLASSES[request.param]),
            *("--bind", f"fd://{listener.fileno()}", "shop:app"),
            receiver=receiver,
            beside=beside,
            listener=listener,
            XDG_RUNTIME_DIR=str(tmp_path_factory.mktemp("run")),  # where it keeps its control socket
            **SILENT_BEFORE_THE_END,
        ) as program,
        ThreadPoolExecutor(at_once) as clients,
    ):
        port = listener.getsockname()[1]

        def ask(what: str, number: int) -> Future[Answer]:
            return clients.submit(ask_shop, port, what, number)

        first = ask("orders", 100).result()  # the tables are there
        with locked(beside, "stock"):
            carts = [ask("carts", number) for number in range(1, 1 + at_once)]
            until_held_up(beside, at_once)
            of_master = backends(beside, waiting=False)
        orders = [ask("orders", number) for number in range(50, 90)]
        answers = [first, *(each.result() for each in orders)]
        program.end(signal.SIGTERM)
        yield Fleet(receiver, [each.result() for each in carts], answers, of_master)


def test_no_backend_is_shared(fleet: Fleet) -> None:
    """The master keeps the connection that it made, which is not theirs; each worker has connections of its own."""
    theirs: dict[int, set[int]] = {}
    for answer in [*fleet.carts, *fleet.orders]:
        theirs.setdefault(answer.worker, set()).add(answer.backend)
    one, other = theirs.values()
    assert len(fleet.of_master) == 1
    assert not one & other
    assert not fleet.of_master & (one | other)


def test_each_worker_reports_its_own_levels(fleet: Fleet) -> None:
    """Under an id of its own, what its carts keep; the master reports that it uses nothing."""
    used = fleet.at_last(COUNT, "used")
    kept = Counter(answer.worker for answer in fleet.carts)
    assert len(kept) == WORKERS
    assert {worker: used.pop(instance) for worker, instance in fleet.instances.items()} == kept
    assert list(used.values()) == [0]


def test_totals_are_not_doubled(fleet: Fleet) -> None:
    """The master's checkout before the fork is counted by the master alone; all together make what has happened."""
    returned = 1 + len(fleet.orders)
    checkouts = returned + len(fleet.carts)
    created = 1 + len({answer.backend for answer in [*fleet.carts, *fleet.orders]})
    assert sum(fleet.total("otel_pgpool.checkouts", path) for path in ("idle", "queued", "new")) == checkouts
    assert fleet.total("otel_pgpool.connections.created") == created
    assert fleet.total("otel_pgpool.connections.discarded", "forked") == WORKERS
    assert fleet.total("db.client.connection.wait_time") == checkouts
    assert fleet.total("db.client.connection.use_time") == returned
    assert fleet.total("db.client.connection.create_time") == created
    for worker, instance in fleet.instances.items():
        ordered = [answer for answer in fleet.orders if answer.worker == worker]
        assert fleet.at_last("db.client.connection.use_time").get(instance, 0) == len(ordered)


def test_each_order_under_gunicorn_is_traced(fleet: Fleet) -> None:
    """As under Flask's own server; no span comes twice."""
    traces = traces_of(fleet.receiver, fleet.orders)
    for answer in fleet.orders:
        request = assert_traced(traces[answer.trace_id], answer)
        assert request.resource[INSTANCE] == fleet.instances[answer.worker]
    ids = [span.span_id for span in fleet.receiver.spans]
    assert len(ids) == len(set(ids))


# A worker that forgets one connection in ten

LONG_HOLD = 3.0
"""Seconds for which none is held that comes back, on a busy machine either."""


def test_a_leak_shows_while_the_worker_runs(receiver: HttpReceiver, dsn: str) -> None:
    """Its oldest hold grows, its long holds are counted, and a record names the line that took the connection."""
    source = (PROGRAMS / "letters.py").read_text().splitlines()
    line = 1 + next(number for number, text in enumerate(source) if "pool.getconn()" in text)
    with (
        database(dsn, "letters") as beside,
        running(
            *(*UNDER_OTEL, "python", "letters.py"),
            receiver=receiver,
            beside=beside,
            OTEL_PGPOOL_LONG_HOLD=str(LONG_HOLD),
            OTEL_METRIC_EXPORT_INTERVAL="200",
            OTEL_PYTHON_LOGGING_AUTO_INSTRUMENTATION_ENABLED="true",
        ) as program,
    ):
        for letter in range(1, 31):
            program.tell(f"send {letter}")
            assert program.line() == str(letter)
        receiver.wait_for(lambda r: len(logs(r, "long_hold")) == 3)
        receiver.wait_for(lambda r: last(r, "otel_pgpool.long_holds") == 3)
        age = last(receiver, "otel_pgpool.oldest_hold")
        receiver.wait_for(lambda r: last(r, "otel_pgpool.oldest_hold") > max(age, LONG_HOLD))
        assert last(receiver, COUNT, "used") == 3
        leaked = backends(beside)
        assert program.runs
        program.end()
    records = logs(receiver, "long_hold")
    assert {record.attributes["otel_pgpool.connection.pid"] for record in records} == leaked
    for record in records:
        assert record.severity_text == "WARN"
        assert record.attributes["otel_pgpool.held"] >= LONG_HOLD
        assert record.attributes["otel_pgpool.transaction.status"] == "idle"
        place, *_ = record.attributes["otel_pgpool.checked_out_at"].splitlines()
        assert place == f"{PROGRAMS / 'letters.py'}:{line} send"
    returned = [span.attributes["otel_pgpool.outcome"] for span in receiver.spans if span.name == "pool.checkout"]
    assert returned == ["released"] * 27


# SQLAlchemy, with too few connections


def test_exhausted_sqlalchemy(receiver: HttpReceiver, dsn: str) -> None:
    """Each customer who is turned away leaves a failed checkout, whose wait links to the checkouts of the holders."""
    with (
        database(dsn, "bank") as beside,
        running(*UNDER_OTEL, "python", "bank.py", receiver=receiver, beside=beside) as program,
    ):
        told = json.loads(program.end())
    assert told["served"] == ["1", "1"]
    assert [refusal.split(",")[0] for refusal in told["refused"]] == [LIMIT] * 2
    checkouts = [span for span in receiver.spans if span.name == "pool.checkout"]
    refused = [span for span in checkouts if "error.type" in span.attributes]
    holders = {
        span.span_id: span.attributes["otel_pgpool.connection.pid"]
        for span in checkouts
        if span not in refused and all(span.start <= other.start <= other.end <= span.end for other in refused)
    }
    assert sorted(holders.values()) == sorted(told["backends"])
    waits = {span.parent_span_id: span for span in receiver.spans if span.name == "pool.wait"}
    assert len(refused) == 2
    assert waits.keys() == {span.span_id for span in refused}
    for span in refused:
        assert span.attributes["error.type"] == span.attributes["otel_pgpool.outcome"] == "timeout"
        assert span.attributes["otel_pgpool.wait_time"] >= POOL_TIMEOUT
        assert (span.status, span.status_description.split(",")[0]) == ("ERROR", LIMIT)
        assert {link.span_id for link in waits[span.span_id].links} == holders.keys()
    assert [point.count for point in points_of(receiver, "db.client.connection.wait_time", "timeout")] == [2]


# gevent

GREENLETS = 200
PATCHED_EARLY = {"OTEL_PYTHON_AUTO_INSTRUMENTATION_EXPERIMENTAL_GEVENT_PATCH": "patch_all"}

HOOKED_BY_HAND = """
from gevent import monkey
monkey.patch_all()
import runpy, sys
from otel_pgpool import PgPoolInstrumentor
PgPoolInstrumentor().instrument()
sys.path.insert(0, "")
runpy.run_path("crowd.py", run_name="__main__")
"""


def assert_fair(told: str) -> dict[str, int]:
    """Everybody was served, and behind nobody but those who came before; what the crowd said."""
    crowd: dict[str, int] = json.loads(told)
    assert crowd["failed"] == 0
    assert crowd["served"] >= 3 * GREENLETS
    assert crowd["least"] >= 1
    assert crowd["overtaken"] <= GREENLETS + 10, crowd  # those in the queue, and those who were just called
    return crowd


@pytest.mark.parametrize("patched", [{}, PATCHED_EARLY], ids=["patched_late", "patched_early"])
@pytest.mark.parametrize("program", ["crowd.py", "crowd_on_ours.py"])
def test_greenlets(receiver: HttpReceiver, dsn: str, program: str, patched: dict[str, str]) -> None:
    """200 on a pool of 5, whatever was imported before the patches: all are served, in turn, and all is told."""
    with (
        database(dsn, "crowd") as beside,
        running(
            *(*UNDER_OTEL, "python", program),
            receiver=receiver,
            beside=beside,
            OTEL_PGPOOL_WAIT_TIMEOUT="20",
            OTEL_BSP_MAX_QUEUE_SIZE="10000",
            **patched,
        ) as running_program,
    ):
        crowd = assert_fair(running_program.end())
        if patched:  # otherwise gevent warns, and the threads of the SDK stumble when they end
            assert [word for word in ("Warning", "Traceback") if word in running_program.errors] == []
    checkouts = [span for span in receiver.spans if span.name == "pool.checkout"]
    assert len(checkouts) == crowd["served"] + 5
    assert {span.attributes["otel_pgpool.outcome"] for span in checkouts} == {"released"}
    assert sum(span.name == "pool.wait" for span in receiver.spans) >= crowd["served"] - 5


@pytest.mark.parametrize("command", [("-c", HOOKED_BY_HAND), ("crowd_on_ours.py",)], ids=["instrumentation", "ours"])
def test_greenlets_without_the_command(dsn: str, command: tuple[str, ...]) -> None:
    """The same, with everything imported after the patches."""
    with (
        database(dsn, "crowd") as beside,
        running("python", *command, receiver=None, beside=beside, OTEL_PGPOOL_WAIT_TIMEOUT="20") as program,
    ):
        assert_fair(program.end())
