"""Connections that were lent before the instrumentation was on, and come back while somebody waits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from psycopg2.pool import ThreadedConnectionPool

from otel_pgpool import PgPoolInstrumentor
from tests.support.waiting import PATIENCE, in_thread, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def instrumentor(monkeypatch: pytest.MonkeyPatch) -> Iterator[PgPoolInstrumentor]:
    monkeypatch.setenv("OTEL_PGPOOL_WAIT_TIMEOUT", "60")
    instrumentor = PgPoolInstrumentor()
    yield instrumentor
    instrumentor.uninstrument()


def test_the_return_of_one_that_is_not_known_serves_who_waits(instrumentor: PgPoolInstrumentor, dsn: str) -> None:
    """The instrumentation knows nothing of its checkout, and calls the first in the queue all the same."""
    pool = ThreadedConnectionPool(1, 1, dsn)
    conn = pool.getconn()
    instrumentor.instrument()
    waiter = in_thread(pool.getconn)
    assert wait_until(lambda: getattr(pool, "_otel_pgpool", None) and pool._otel_pgpool.queue)
    pool.putconn(conn)
    assert waiter.result(PATIENCE) is conn
    pool.putconn(conn)
    pool.closeall()
