"""An interrupt at every line of a checkout and its release, once: nothing is lost."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import psycopg2
import pytest

from tests.chaos import interrupts
from tests.chaos.pools import use

if TYPE_CHECKING:
    from otel_pgpool import ConnectionPool


@pytest.mark.timeout(180)
@pytest.mark.parametrize("names", ["off", "trace"])
def test_an_interrupt_anywhere_loses_nothing(dsn: str, names: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each interrupt, connections, spans, the context and descriptors are as before.

    No idle session keeps the name of a checkout's trace, if checkouts name their sessions.

    Afterwards, the former tracer is active again, and the thread handles no error.
    """
    monkeypatch.setenv("OTEL_PGPOOL_APPLICATION_NAME", names)
    tracer = sys.gettrace()
    interrupted = interrupts.play(1, dsn)
    assert interrupted.violations == []
    assert interrupted.lines_interrupted > 400
    assert sys.gettrace() is tracer
    assert sys.exc_info() == (None, None, None)


def nest(pool: ConnectionPool) -> None:
    """Begin blocks inside a block: one that ends well, one that fails, one whose transaction is in error."""
    with pool.connection() as conn:
        use(conn)
        with pool.connection(), pool.connection():
            use(conn)
        with suppress(LookupError), pool.connection():
            use(conn)
            raise LookupError
        with pool.connection(), suppress(psycopg2.Error):
            conn.cursor().execute("select 1/0")


@pytest.mark.timeout(180)
def test_an_interrupt_of_blocks_inside_loses_nothing(dsn: str) -> None:
    """The same as above, at every line of blocks inside a block of a reentrant pool."""
    interrupted = interrupts.play(1, dsn, [nest], reentrant=True)
    assert interrupted.violations == []
    assert interrupted.lines_interrupted > 100
