"""A return that an interrupt breaks off: Ctrl-C, or gevent's Timeout while it waits for the stock pool's lock."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from psycopg2.pool import ThreadedConnectionPool

from otel_pgpool import PgPoolInstrumentor
from tests.integration.telemetry_helpers import Signals

if TYPE_CHECKING:
    from collections.abc import Iterator


class Interrupted:
    """A lock that nobody gets."""

    def acquire(self) -> None:
        raise KeyboardInterrupt

    def release(self) -> None:
        raise AssertionError


@pytest.fixture
def signals() -> Iterator[Signals]:
    instrumentor = PgPoolInstrumentor()
    with Signals() as signals:
        instrumentor.instrument(tracer_provider=signals.tracer_provider, meter_provider=signals.meter_provider)
        yield signals
        instrumentor.uninstrument()


def test_the_hold_goes_on(signals: Signals, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool still counts the connection as used, and so does telemetry, until it does come back."""
    pool = ThreadedConnectionPool(1, 1, dsn)
    conn = pool.getconn()
    with monkeypatch.context() as patch:
        patch.setattr(pool, "_lock", Interrupted())
        with pytest.raises(KeyboardInterrupt):
            pool.putconn(conn)
    assert signals.named("pool.checkout") == []
    (point,) = signals.metrics()["otel_pgpool.oldest_hold"].data.data_points
    assert point.value > 0
    pool.putconn(conn)
    assert (signals.checkout().attributes or {})["otel_pgpool.outcome"] == "released"
    pool.closeall()
