"""What the tests of the instrumentation share: the instrumentation on for a block, and what its spans must hold.

with Signals() as signals, instrumented(signals):
    pool = ThreadedConnectionPool(1, 2, dsn)
    pool.putconn(pool.getconn())
    assert_exactly(signals.checkout().attributes, lent(dsn))
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from psycopg2 import extensions
from psycopg2.pool import AbstractConnectionPool, SimpleConnectionPool, ThreadedConnectionPool

from otel_pgpool import PgPoolInstrumentor
from tests.support.telemetry import served, unserved

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otel_pgpool.instrumentation.tracker import PoolTracker
    from tests.support.telemetry import Signals

EXHAUSTED = "connection pool exhausted"
CLOSED = "connection pool is closed"
UNKEYED = "trying to put unkeyed connection"

STOCK = (SimpleConnectionPool, ThreadedConnectionPool)
CLASSES = (AbstractConnectionPool, *STOCK)


@contextmanager
def instrumented(signals: Signals | None = None, **options: Any) -> Iterator[PgPoolInstrumentor]:
    """Have the instrumentation on, telling these signals, or without any: then ordinary checkouts are quiet."""
    instrumentor = PgPoolInstrumentor()
    providers: dict[str, Any] = {}
    if signals is not None:
        providers = {"tracer_provider": signals.tracer_provider, "meter_provider": signals.meter_provider}
    instrumentor.instrument(**providers, **options)
    try:
        yield instrumentor
    finally:
        if instrumentor.is_instrumented_by_opentelemetry:
            instrumentor.uninstrument()


def quietly() -> Any:
    """Instrument at the lowest cost: no spans, and no meter provider."""
    return instrumented(spans="off", long_hold=None)


def name_of(dsn: str) -> str:
    """Return the name that the instrumentation gives to a pool of this server."""
    parameters = extensions.parse_dsn(dsn)
    return f"{parameters['host']}:{parameters['port']}/{parameters['dbname']}"


def lent(dsn: str, name: str | None = None, **changes: Any) -> dict[str, Any]:
    """All attributes of a checkout that was served; a keyword replaces ``otel_pgpool.<keyword>``."""
    expected = served(dsn, **{"outcome": "released", **changes})
    return {**expected, "db.client.connection.pool.name": name or name_of(dsn)}


def denied(dsn: str, outcome: str, error: str, path: str = "idle", **changes: Any) -> dict[str, Any]:
    """All attributes of a checkout that failed."""
    return {**unserved(dsn, path, outcome, error, **changes), "db.client.connection.pool.name": name_of(dsn)}


def tracker_of(pool: Any) -> PoolTracker:
    """Return the tracker of an instrumented pool."""
    tracker: PoolTracker = vars(pool)["_otel_pgpool"]
    return tracker


def snapshot() -> dict[tuple[type, str], Any]:
    """Every attribute of the classes of psycopg2's pools."""
    return {(cls, name): value for cls in CLASSES for name, value in vars(cls).items()}
