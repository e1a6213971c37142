"""The way from an instrumented pool to a monitor: which server it names, and what is shown of errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.instrumentation.utils import is_instrumentation_enabled
from psycopg2 import OperationalError

from otel_pgpool.driver.target import UNKNOWN, target_of_parameters
from otel_pgpool.errors import PoolError
from otel_pgpool.instrumentation.monitoring import TrackedPoolSource
from otel_pgpool.instrumentation.options import InstrumentationOptions
from otel_pgpool.instrumentation.session import InstrumentationSession
from otel_pgpool.pool.checkout import Slot
from otel_pgpool.runtime.clock import monotonic
from tests.support.adapters import FakeAdapter

if TYPE_CHECKING:
    from otel_pgpool.pool.monitor_source import Server

ONE = target_of_parameters({"host": "db", "port": "5433", "dbname": "shop"})
SEVERAL = target_of_parameters({"host": "db,standby", "port": "5433,5434", "dbname": "shop"})


class Adapter(FakeAdapter):
    """Every connection is one to the standby."""

    def server_address(self, _conn: Any) -> tuple[str | None, int | None]:
        return "standby", 5434


class Connection:
    """A monitoring connection that notes whether other instrumentations would report its calls."""

    pid = 7
    local_port = 0

    def __init__(self, chosen: Server | None) -> None:
        self.chosen = chosen
        self.reported = [is_instrumentation_enabled()]

    def query(self, _statement: str) -> str:
        self.reported.append(is_instrumentation_enabled())
        return "answer"

    def close(self) -> None:
        self.reported.append(is_instrumentation_enabled())

    def close_inherited(self) -> None:
        raise NotImplementedError


def source_of(target: Any, made: list[Connection] | None = None) -> TrackedPoolSource:
    def connect(chosen: Server | None) -> Connection:
        conn = Connection(chosen)
        if made is not None:
            made.append(conn)
        return conn

    return TrackedPoolSource(connect, Adapter(), target)


@pytest.mark.parametrize(
    ("target", "conn", "server", "chosen"),
    [
        (ONE, object(), ("db", 5433), None),
        (ONE, None, ("db", 5433), None),
        (SEVERAL, object(), ("standby", 5434), ("standby", 5434)),
        (SEVERAL, None, ("db,standby", None), None),
        (UNKNOWN, object(), ("standby", 5434), None),
    ],
)
def test_servers(target: Any, conn: Any, server: Server, chosen: Server | None) -> None:
    """The connection says which server it is if the target does not; only one of several is passed on."""
    made: list[Connection] = []
    source = source_of(target, made)
    slot = Slot()
    slot.ref = lambda: conn
    assert source.server_of(slot) == server
    source.open(server)
    assert made[0].chosen == chosen


def test_nothing_is_reported_by_others() -> None:
    """Instrumentations are suppressed during connect, query and close."""
    made: list[Connection] = []
    conn = source_of(ONE, made).open(("db", 5433))
    assert (conn.pid, conn.query("select 1")) == (7, "answer")
    conn.close()
    assert made[0].reported == [False, False, False]
    assert is_instrumentation_enabled()


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (PoolError("our own words"), "our own words"),
        (OperationalError("hunter2"), "OperationalError"),
        (KeyError("hunter2"), "KeyError"),
    ],
)
def test_texts_of_errors(error: Exception, text: str) -> None:
    """Unknown texts are not shown."""
    assert source_of(ONE).error_text(error) == text


def test_a_kind_without_monitoring_connections(caplog: pytest.LogCaptureFixture) -> None:
    """One record says that nothing is known of this pool's holds, and what the variable covers."""

    class Pool:
        """A pool, and a connection of it."""

    options = InstrumentationOptions.of(long_hold=10, environ={"OTEL_PGPOOL_DATABASE_STATE": "all"})
    session = InstrumentationSession(options)
    session.watch.parked = False  # no thread is started
    pool, conns = Pool(), [Pool(), Pool()]
    tracker = session.track(pool, FakeAdapter(), name="shop")
    assert tracker is not None
    for later, conn in enumerate(conns, 1):
        tracker.acquired(tracker.start(()), conn)
        tracker.report_due(monotonic() + 20 * later)
    records = [record.getMessage() for record in caplog.records if "OTEL_PGPOOL_DATABASE_STATE" in record.getMessage()]
    session.end()
    (text,) = records
    assert text.startswith("pool shop: the database state of long holds is unknown: ")
    assert "psycopg_pool" in text
