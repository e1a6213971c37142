"""The monitor of a server, on a fake connection and an injected clock: when it asks, what it tells, when it ends."""

from __future__ import annotations

import itertools
import json
import logging
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from otel_pgpool.pool import monitor as module
from otel_pgpool.pool import server_queries
from otel_pgpool.pool.checkout import Checkout, Slot, begin
from otel_pgpool.pool.monitor import GATHER, Monitor
from otel_pgpool.pool.monitor_source import MonitoredPool
from otel_pgpool.pool.server_queries import CLOSE_AFTER, QUERY_INTERVAL, RETRY_AFTER
from otel_pgpool.pool.session_query import Session

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otel_pgpool.database_state import DatabaseState

SERVER = ("db", 5432)


class FakeConnection:
    """Answers that every session is idle; fails on demand."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.pid = 99
        self.local_port = 0
        self.closed = False

    def query(self, statement: str) -> str:
        self.bench.queries.append(statement)
        self.bench.now += self.bench.seconds
        if self.bench.error is not None:
            raise self.bench.error
        pids = [hold.slot.pid for hold in self.bench.holds if hold.slot.pid not in self.bench.unlisted]
        rows = [{**dict.fromkeys(Session._fields), "pid": pid, "blockers": [], "state": "idle"} for pid in pids]
        return json.dumps({"backend": self.bench.backend, "client_port": None, "sessions": rows})

    def close(self) -> None:
        self.closed = True

    def close_inherited(self) -> None:
        self.closed = True


class Bench:
    """A monitor whose passes the test makes, the pool that it serves, and what it reports."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.backend = 99
        self.error: Exception | None = None
        self.seconds = 0.0
        self.unlisted: set[int] = set()
        self.queries: list[str] = []
        self.connections: list[FakeConnection] = []
        self.holds: list[Checkout] = []
        self.reports: list[tuple[int, float]] = []
        self.monitor = Monitor(SERVER)
        self.pool = MonitoredPool("main", self, self.report)

    login, database = "app", "shop"

    def server_of(self, _slot: object) -> tuple[str, int | None]:
        return SERVER

    def open(self, server: tuple[str, int | None]) -> FakeConnection:
        assert server == SERVER
        if self.error is not None:
            raise self.error
        self.connections.append(FakeConnection(self))
        return self.connections[-1]

    def error_text(self, error: BaseException) -> str:
        return str(error)

    def report(self, checkout: Checkout, state: DatabaseState, _blockers: Sequence[Checkout]) -> None:
        self.reports.append((checkout.slot.pid, round(state.held, 3)))

    def flag(self, pid: int, age: float = 1.0, pool: MonitoredPool | None = None) -> Checkout:
        """Let a hold become long now."""
        checkout: Any = begin(self.now - age, ())
        checkout.slot, checkout.acquired, checkout.held = Slot(), self.now - age, True
        checkout.slot.pid, checkout.flagged_at = pid, self.now
        checkout.slot.ref = lambda: self
        self.holds.append(checkout)
        assert self.monitor.watch(pool or self.pool, [checkout])
        return checkout

    def run_until(self, end: float) -> None:
        """Make the passes that are due before a time."""
        while (seconds := self.monitor.run_once()) is not None and self.now + seconds < end:
            self.now += seconds
        self.now = end


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    bench = Bench()
    for each in (module, server_queries):
        monkeypatch.setattr(each, "monotonic", lambda: bench.now)
    monkeypatch.setattr(module, "start_thread", lambda _thread: None)
    return bench


def test_it_asks_at_each_doubling(bench: Bench) -> None:
    """At the threshold, and each time that the hold's age has doubled."""
    bench.flag(7)
    bench.run_until(1040.0)
    assert [age for _pid, age in bench.reports] == pytest.approx([1, 2, 4, 8, 16, 32], abs=0.1)
    assert len(bench.queries) == len(bench.reports)


def test_one_query_for_all(bench: Bench) -> None:
    """However many holds are long; each keeps its latest state, and is reported when it is due."""
    first = bench.flag(7)
    bench.run_until(1000.1)
    others = [bench.flag(pid) for pid in range(10, 210)]
    bench.run_until(1002.0)
    assert len(bench.queries) == 2
    assert "7,10,11" in bench.queries[1]
    assert all(hold.database_state is not None for hold in [first, *others])
    assert sorted(pid for pid, _age in bench.reports) == [7, 7, *range(10, 210)]


def test_at_most_one_query_a_second(bench: Bench) -> None:
    """However short the threshold is."""
    for pid in range(50):
        bench.flag(pid + 1, age=0.01)
        bench.run_until(bench.now + 0.1)
    assert len(bench.queries) <= 50 * 0.1 / QUERY_INTERVAL + 1


def test_nothing_is_asked_after_the_hold(bench: Bench) -> None:
    """A hold that has ended is neither asked for nor kept; a minute later connection and thread end."""
    hold: Any = bench.flag(7)
    bench.run_until(1000.5)
    del hold.held
    bench.run_until(1000.5 + CLOSE_AFTER - 2)
    assert len(bench.queries) == 1
    assert not bench.connections[0].closed
    bench.now += 3
    assert bench.monitor.run_once() is None
    assert bench.connections[0].closed
    bench.flag(8)
    bench.run_until(bench.now + 2 * GATHER)
    assert len(bench.connections) == 2


def test_a_failure_is_told_once(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """The next query follows after some seconds, with a new connection; a later failure is told again."""
    with caplog.at_level(logging.WARNING, "otel_pgpool"):
        bench.error = RuntimeError("too many clients")
        bench.flag(7)
        bench.run_until(1000.0 + 3.5 * RETRY_AFTER)
        assert [record.getMessage() for record in caplog.records] == [
            "pool main: the database state of long holds is unknown: it could not be asked: too many clients"
        ]
        bench.error = None
        bench.run_until(bench.now + RETRY_AFTER)
        assert len(bench.reports) == 1
        bench.error = RuntimeError("frozen")
        bench.run_until(bench.now + 100)
        assert len(caplog.records) == 2


def test_a_closed_connection_is_replaced(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the server has closed the idle connection, the same pass asks over a new one."""
    bench.flag(7)
    bench.run_until(bench.now + 2 * GATHER)

    def refuse(_statement: str) -> str:
        raise ConnectionError

    monkeypatch.setattr(bench.connections[0], "query", refuse)
    bench.run_until(1001.5)
    assert [age for _pid, age in bench.reports] == pytest.approx([1, 2], abs=0.1)
    assert [each.closed for each in bench.connections] == [True, False]


def test_behind_a_proxy(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Where the process id of a session is not the server's, no row is taken for a hold's, and that is told once."""
    bench.backend = 4711
    with caplog.at_level(logging.WARNING, "otel_pgpool"):
        bench.flag(7)
        bench.run_until(1100.0)
    assert bench.reports == []
    assert len(bench.queries) == 1
    (record,) = caplog.records
    assert "OTEL_PGPOOL_APPLICATION_NAME=trace" in record.getMessage()


def test_a_stopped_monitor_ends(bench: Bench) -> None:
    """It closes its connection, whatever it watches, and watches nothing more."""
    bench.flag(7)
    bench.run_until(bench.now + 2 * GATHER)
    bench.monitor.stop()
    assert bench.monitor.run_once() is None
    assert bench.connections[0].closed
    assert not bench.monitor.watch(bench.pool, bench.holds)


def test_no_thread_can_be_started(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next long hold tries again, and the query is about both."""

    def refuse(_thread: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(module, "start_thread", refuse)
        bench.flag(7)
    started: list[object] = []
    monkeypatch.setattr(module, "start_thread", started.append)
    bench.flag(8)
    bench.run_until(bench.now + 2 * GATHER)
    assert len(started) == len(bench.queries) == 1
    assert "{7,8}" in bench.queries[0]


def test_a_slow_server_is_asked_less_often(bench: Bench) -> None:
    """Queries take a tenth of its time at most, and each state is reported once."""
    bench.seconds = 0.5
    for pid, age in ((7, 1.0), (8, 1.2), (9, 1.4)):
        bench.flag(pid, age)
    bench.run_until(1040.0)
    assert len(bench.queries) <= 40 / (0.5 * 10)
    assert len(bench.reports) == len({(pid, age) for pid, age in bench.reports})
    for pid in (7, 8, 9):
        ages = [age for each, age in bench.reports if each == pid]
        assert all(later >= 1.5 * earlier for earlier, later in itertools.pairwise(ages))


class BrokenSource:
    """A pool's way to the server that takes some seconds to fail."""

    login, database = "app", "shop"

    def __init__(self, bench: Bench, seconds: float) -> None:
        self.bench, self.seconds, self.tries = bench, seconds, 0

    def server_of(self, _slot: object) -> tuple[str, int | None]:
        return SERVER

    def open(self, _server: object) -> FakeConnection:
        self.tries += 1
        self.bench.now += self.seconds
        raise RuntimeError("wrong password")

    def error_text(self, error: BaseException) -> str:
        return str(error)


@pytest.mark.parametrize("seconds", [0.0, 2.0])
def test_a_pool_whose_way_is_broken(bench: Bench, caplog: pytest.LogCaptureFixture, seconds: float) -> None:
    """The server is asked over another pool's connection, soon, and both pools' holds are reported."""
    source = BrokenSource(bench, seconds)
    with caplog.at_level(logging.WARNING, "otel_pgpool"):
        bench.flag(7, pool=MonitoredPool("broken", source, bench.report))
        bench.flag(8)
        bench.run_until(1000.0 + seconds + 1.2)
    assert {pid for pid, _age in bench.reports} == {7, 8}
    assert source.tries == 1
    assert not caplog.records


def test_a_session_that_is_not_listed(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """It has ended, or is one of another server: that is told once, and other holds are reported."""
    bench.unlisted = {7}
    with caplog.at_level(logging.WARNING, "otel_pgpool"):
        bench.flag(7)
        bench.flag(8)
        bench.run_until(1010.0)
    assert {pid for pid, _age in bench.reports} == {8}
    (record,) = caplog.records
    assert "no such session" in record.getMessage()


def test_a_hold_whose_connection_was_dropped(bench: Bench) -> None:
    """It is not watched, even if its pool is gone too and cannot reclaim the connection."""

    class Connection:
        """A connection."""

    conn = Connection()
    checkout: Any = bench.flag(7)
    checkout.slot.ref = weakref.ref(conn)
    bench.run_until(1000.5)
    assert len(bench.queries) == 1
    del conn
    bench.run_until(1010.0)
    assert len(bench.queries) == 1


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, MemoryError])
def test_an_error_that_ends_no_thread(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """Whatever is raised into the thread, it goes on with the next pass."""
    raised: list[BaseException] = []

    def run_once() -> float | None:
        if not raised:
            raised.append(error())
            raise raised[0]
        return None

    monkeypatch.setattr(bench.monitor, "run_once", run_once)
    monkeypatch.setattr(module, "QUERY_INTERVAL", 0.0)
    bench.monitor._run()
    assert raised


def test_holds_that_are_due_almost_together(bench: Bench) -> None:
    """One query answers for all of them, at each doubling."""
    bench.flag(7)
    bench.now += 0.04
    bench.flag(8, age=1.0)
    bench.run_until(1010.0)
    assert len(bench.queries) == 4
    assert [pid for pid, _age in bench.reports] == [7, 8] * 4


def test_a_proxy_keeps_no_connection(bench: Bench) -> None:
    """Behind a proxy the monitoring connection is closed after each query: a client may need the server's."""
    bench.backend = 4711
    checkout: Any = bench.flag(7)
    checkout.trace_name = f"00-{'a' * 32}-{'b' * 16}-01"
    bench.run_until(1003.0)
    assert len(bench.queries) == len(bench.connections) == 2
    assert all(conn.closed for conn in bench.connections)


def test_a_pool_that_needs_the_last_slot(bench: Bench) -> None:
    """The connection is closed at once, and the server is not asked for a while."""
    bench.flag(7)
    bench.run_until(1000.5)
    bench.monitor.stay_away()
    bench.run_until(1000.5 + CLOSE_AFTER - 1)
    assert len(bench.queries) == 1
    assert bench.connections[0].closed
    bench.run_until(1000.5 + CLOSE_AFTER + 1)
    assert len(bench.queries) == 2


def test_an_idle_connection_is_closed(bench: Bench) -> None:
    """After a minute without a query, although a hold lasts; the next report opens another."""
    bench.flag(7, age=100.0)
    bench.run_until(1000.0 + CLOSE_AFTER + 1)
    assert bench.connections[0].closed
    bench.run_until(1000.0 + 105.0)
    assert len(bench.connections) == len(bench.queries) == 2


def test_the_wrong_server_is_left(bench: Bench) -> None:
    """If no session is listed, the next query opens another connection, which may lead to the right server."""
    bench.unlisted = {7}
    bench.flag(7)
    bench.run_until(1000.5)
    assert bench.connections[0].closed
    bench.unlisted = set()
    bench.run_until(1003.0)
    assert len(bench.connections) == 2
    assert bench.reports


def test_ended_holds_are_forgotten(bench: Bench) -> None:
    """Even while the thread hangs, as in a callback of the program that provides credentials."""
    for pid in range(1, 100):
        checkout: Any = bench.flag(pid)
        del checkout.held
    assert len(bench.monitor._holds) == 1
