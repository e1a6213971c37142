"""A shop with Django's own pool: under its test client, uvicorn, and gunicorn with a pool that is open at the fork."""

from __future__ import annotations

import json
import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NamedTuple
from urllib.error import HTTPError

import pytest

from tests.integration.programs.support.programs import (
    AT_THE_END,
    PROGRAMS,
    SOON,
    WITH_LOGS,
    checkouts,
    inherited,
    level,
    pid,
    points,
    started,
)
from tests.support.call_sites import shown_name
from tests.support.program_signals import COUNT, Answer, ask_shop, logs, traces_of
from tests.support.programs import UNDER_OTEL, backends, database, locked, until_held_up
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future
    from contextlib import AbstractContextManager
    from pathlib import Path

    from psycopg2.extensions import connection

    from tests.support.programs import Program
    from tests.support.receivers import HttpReceiver

pytestmark = pytest.mark.timeout(120)

VIEWS = PROGRAMS / "django_shop" / "views.py"
SETTINGS = {"DJANGO_SETTINGS_MODULE": "traced_settings"}
LONG_HOLD = {"OTEL_PGPOOL_LONG_HOLD": "0.3"}
WAITING = "db.client.connection.pending_requests"


@contextmanager
def stocked(server_dsn: str) -> Iterator[connection]:
    """Provide a database with the shop's table."""
    with database(server_dsn, "django_shop") as beside:
        with beside.cursor() as cur:
            cur.execute("create table stock as select item as id, 1000 as pieces from generate_series(1, 100) as item")
        yield beside


def order_too_much(receiver: HttpReceiver, beside: connection, order: Callable[[int], object]) -> set[int]:
    """Let two orders hold both connections for too long, and a third wait; return the two backends."""
    order(1)
    order(2)
    held_up = until_held_up(beside, 2)
    order(3)
    receiver.wait_for(lambda r: len(logs(r, "long_hold")) == 2)
    receiver.wait_for(lambda r: (found := points(r, WAITING, "shop")) and found[-1].value == 1)
    receiver.wait_for(lambda r: level(r, "shop", "used") == 2)
    return held_up


def assert_two_held_and_one_waited(receiver: HttpReceiver, held_up: set[int]) -> None:
    """Check three orders: each request's checkout, the holds of two, and the wait of the third, with its links."""
    requests = {span.span_id: span for span in receiver.spans if span.kind == "SERVER"}
    of_requests = checkouts(receiver, "shop")
    assert {span.parent_span_id for span in of_requests} == requests.keys()
    assert len(of_requests) == 3
    assert {span.attributes["otel_pgpool.outcome"] for span in of_requests} == {"released"}
    holders = {span.span_id for span in of_requests if span.attributes["otel_pgpool.long_hold"]}
    assert {pid(span) for span in of_requests if span.span_id in holders} == held_up
    [last] = [span for span in of_requests if span.span_id not in holders]
    assert last.attributes["otel_pgpool.path"] == "queued"
    [wait] = [span for span in receiver.spans if span.name == "pool.wait" and span.parent_span_id == last.span_id]
    assert {link.span_id for link in wait.links} == holders


def line_of(text: str) -> int:
    """Return the number of a line of the views."""
    lines = VIEWS.read_text(encoding="utf-8").splitlines()
    [number] = [number for number, line in enumerate(lines, 1) if text in line]
    return number


def assert_places(receiver: HttpReceiver, line: int, function: str) -> None:
    """Check that the records of both long holds name the view's line, as checkout and in the present stack."""
    for record in logs(receiver, "long_hold"):
        assert record.attributes["otel_pgpool.checked_out_at"].splitlines()[0] == f"{VIEWS}:{line} {function}"
        stack = record.attributes["code.stacktrace"].splitlines()
        assert f'File "{VIEWS}", line {line}, in {function}' in stack


def test_test_client(receiver: HttpReceiver, dsn: str) -> None:
    """Each request's checkout is its request's child; a long hold has the view's line; a wait links to the holders."""
    with stocked(dsn) as beside, ExitStack() as lock:
        lock.enter_context(locked(beside, "stock"))
        with started(
            *(*UNDER_OTEL, "python", str(PROGRAMS / "visit.py")),
            receiver=receiver,
            beside=beside,
            **{**SETTINGS, **SOON, **WITH_LOGS, **LONG_HOLD},
        ) as program:
            held_up = order_too_much(receiver, beside, lambda number: program.tell(str(number)))
            lock.close()
            answers = json.loads(program.end())
    assert {answer["backend"] for answer in answers} <= held_up
    assert_two_held_and_one_waited(receiver, held_up)
    assert_places(receiver, line_of(".update(pieces="), "order")
    assert level(receiver, "shop", "used") == 0


# Servers


@contextmanager
def serving(
    *command: str, receiver: HttpReceiver, beside: connection, **environ: str
) -> Iterator[tuple[Program, int, ThreadPoolExecutor]]:
    """Start a server on a port of its own, given to it as a descriptor; and clients."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        started(
            *UNDER_OTEL,
            *(part.replace("FD", str(listener.fileno())) for part in command),
            receiver=receiver,
            beside=beside,
            listener=listener,
            **{**SETTINGS, **WITH_LOGS, **environ},
        ) as program,
        ThreadPoolExecutor(8) as clients,
    ):
        yield program, listener.getsockname()[1], clients


def test_async_views_under_uvicorn(receiver: HttpReceiver, dsn: str) -> None:
    """Without blocking the loop, as under the test client; a connection that fails Django's health check is a retry."""
    with stocked(dsn) as beside, ExitStack() as lock:
        lock.enter_context(locked(beside, "stock"))
        with serving(
            *("uvicorn", "--fd", "FD", "--log-level", "warning", "django_shop.asgi:application"),
            receiver=receiver,
            beside=beside,
            **{**SOON, **LONG_HOLD},
        ) as (program, port, clients):
            orders: list[Future[Answer]] = []
            held_up = order_too_much(
                receiver, beside, lambda number: orders.append(clients.submit(ask_shop, port, "later", number))
            )
            lock.close()
            answers = [each.result() for each in orders]
            traces_of(receiver, answers)
            receiver.wait_for(lambda r: level(r, "shop", "used") == 0)
            assert {answer.backend for answer in answers} <= held_up
            assert_two_held_and_one_waited(receiver, held_up)
            terminate(beside, held_up)
            after = ask_shop(port, "later", 4)
            program.end(signal.SIGINT)
    assert after.backend not in held_up
    for record in logs(receiver, "long_hold"):
        function = record.attributes["otel_pgpool.checked_out_at"].rpartition(" ")[2]
        assert function == shown_name("DatabaseWrapper.get_new_connection")
        assert f"{os.sep}django{os.sep}" in record.attributes["code.stacktrace"]  # without a frame of the shop, whole
    [checkout] = [span for span in checkouts(receiver, "shop") if span.trace_id == after.trace_id]
    assert checkout.attributes["otel_pgpool.retries"] >= 1
    assert "pool.retry" in {event.name for event in checkout.events}


def terminate(beside: connection, pids: set[int]) -> None:
    """End backends."""
    with beside.cursor() as cur:
        cur.execute("select pg_terminate_backend(pid, 5000) from unnest(%s) as pid", [[*pids]])


# gunicorn: a master that has opened the pool, and two workers that are forked from it

CLASSES = {"sync": ("--worker-class", "sync"), "gthread": ("--threads", "2", "--worker-connections", "2")}
AT_ONCE = {"sync": 1, "gthread": 2}
WORKERS = 2
INSTANCE = "service.instance.id"


SCARCE = {"CONNECTIONS": "1", "TIMEOUT": "0.3"}
REPAIR = {"OTEL_PGPOOL_FORK_REPAIR": "1"}


def gunicorn(
    worker_class: str, module: str, receiver: HttpReceiver, beside: connection, tmp_path: Path, **environ: str
) -> AbstractContextManager[tuple[Program, int, ThreadPoolExecutor]]:
    """Start a master that imports a module of the shop before it forks two workers."""
    return serving(
        *("gunicorn", "--preload", "--workers", str(WORKERS), *CLASSES[worker_class]),
        *("--bind", "fd://FD", f"django_shop.{module}:application"),
        receiver=receiver,
        beside=beside,
        XDG_RUNTIME_DIR=str(tmp_path),  # where it keeps its control socket
        **{**AT_THE_END, **environ},
    )


class Served(NamedTuple):
    """What one run under gunicorn has left."""

    answers: list[Answer]
    of_master: set[int]
    """Backends that were there before the first request."""


def serve_all(
    worker_class: str, module: str, receiver: HttpReceiver, beside: connection, tmp_path: Path, **environ: str
) -> Served:
    """Let all workers serve at the same time, then ten more orders."""
    at_once = WORKERS * AT_ONCE[worker_class]
    with gunicorn(worker_class, module, receiver, beside, tmp_path, **environ) as (program, port, clients):
        assert wait_until(lambda: program.errors.count("Booting worker") == WORKERS)
        of_master = backends(beside)
        with locked(beside, "stock"):
            orders = [clients.submit(ask_shop, port, "orders", number) for number in range(1, 1 + at_once)]
            held_up = until_held_up(beside, at_once)
        answers = [each.result() for each in orders]
        assert {answer.backend for answer in answers} == held_up
        answers += clients.map(lambda number: ask_shop(port, "orders", number), range(50, 60))
        assert of_master <= backends(beside)
        program.end(signal.SIGTERM)
    return Served(answers, of_master)


def assert_own_backends(receiver: HttpReceiver, served: Served) -> None:
    """Check that no backend belongs to two processes, and that each request has its checkout."""
    backends_of: dict[int, set[int]] = {}
    for answer in served.answers:
        backends_of.setdefault(answer.worker, set()).add(answer.backend)
    one, other = backends_of.values()
    assert not one & other
    assert not served.of_master & (one | other)
    traces = traces_of(receiver, served.answers)
    for answer in served.answers:
        [request] = [span for span in traces[answer.trace_id] if span.kind == "SERVER"]
        [checkout] = [span for span in traces[answer.trace_id] if span.name == "pool.checkout"]
        assert (checkout.parent_span_id, pid(checkout)) == (request.span_id, answer.backend)
    assert inherited(receiver) == []


@pytest.mark.parametrize("worker_class", CLASSES)
def test_repaired_under_gunicorn(worker_class: str, receiver: HttpReceiver, dsn: str, tmp_path: Path) -> None:
    """Each worker opens its own connections, and leaves the master's alone, also the one that its thread inherited."""
    with stocked(dsn) as beside:
        served = serve_all(worker_class, "wsgi", receiver, beside, tmp_path, **REPAIR)
    assert served.of_master
    assert_own_backends(receiver, served)
    workers = {span.resource[INSTANCE] for span in receiver.spans if span.kind == "SERVER"}
    used = {point.resource[INSTANCE]: point.value for point in points(receiver, COUNT, "shop", "used")}
    assert {used.pop(worker) for worker in workers} == {0}
    assert [*used.values()] == [1]  # the master's thread keeps a connection
    forked = points(receiver, "otel_pgpool.connections.discarded", "shop", "forked")
    assert {point.resource[INSTANCE] for point in forked} == workers


def test_closed_before_the_fork(receiver: HttpReceiver, dsn: str, tmp_path: Path) -> None:
    """If the application closes Django's pool after its import, workers need no repair."""
    with stocked(dsn) as beside:
        served = serve_all("sync", "wsgi_closed", receiver, beside, tmp_path)
    assert served.of_master == set()
    assert_own_backends(receiver, served)


def test_reported_under_gunicorn(receiver: HttpReceiver, dsn: str, tmp_path: Path) -> None:
    """Without the repair the pool opens nothing in a worker: requests fail as the pool does, a record has the cause."""
    with (
        stocked(dsn) as beside,
        gunicorn("gthread", "wsgi", receiver, beside, tmp_path, **SCARCE) as (program, port, clients),
    ):
        assert wait_until(lambda: program.errors.count("Booting worker") == WORKERS)
        status = [clients.submit(status_of_order, port, number) for number in range(1, 5)]
        assert [each.result() for each in status] == [500] * 4
        master = program.process.pid
        program.end(signal.SIGTERM)
    failures = [record.attributes for record in receiver.logs if record.attributes.get("exception.type")]
    assert {each["exception.message"] for each in failures} == {"couldn't get a connection after 0.30 sec"}
    records = inherited(receiver)
    workers = {span.resource[INSTANCE] for span in receiver.spans if span.kind == "SERVER"}  # usually both
    assert sorted(record.resource[INSTANCE] for record in records) == sorted(workers)
    for record in records:
        assert record.severity_text == "ERROR"
        assert str(record.body).startswith(f"pool shop: opened in process {master}, and used in its forked child ")
        assert str(record.body).endswith("open the pool after the fork, or set OTEL_PGPOOL_FORK_REPAIR=1")
    failed = checkouts(receiver, "shop")
    assert [span.attributes["error.type"] for span in failed if span.status == "ERROR"] == ["timeout"] * 4


def status_of_order(port: int, number: int) -> int:
    """Order, and return the status of the answer."""
    try:
        ask_shop(port, "orders", number)
    except HTTPError as error:
        error.close()
        return error.code
    return 200
