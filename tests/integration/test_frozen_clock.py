"""A test that freezes its program's clock, as freezegun does, stops neither waits nor bounds of the pool."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from freezegun import freeze_time

from otel_pgpool import PoolTimeout
from tests.support.pools import make
from tests.support.scripts import run_program
from tests.support.waiting import in_thread

if TYPE_CHECKING:
    from otel_pgpool import ConnectionPool


def waited_in_vain(pool: ConnectionPool) -> float:
    with pytest.raises(PoolTimeout) as caught:
        pool.getconn(timeout=0.2)
    return caught.value.waited


@pytest.mark.parametrize("made_before", [True, False])
def test_waits_go_on(dsn: str, made_before: bool) -> None:
    """A waiter is served, or times out after its timeout; durations are real, on a pool made before or inside."""
    pool = make(1, 1, dsn) if made_before else None
    with freeze_time("2020-01-01"), pool or make(1, 1, dsn) as pool:
        held = pool.getconn()
        waiter = in_thread(pool.getconn)
        assert 0.2 <= in_thread(waited_in_vain, pool).result(10) < 5
        assert pool.stats().oldest_hold > 0.2
        pool.putconn(held)
        pool.putconn(waiter.result(10))


def test_imported_inside(dsn: str) -> None:
    """Also where the package is imported while the clock stands still."""
    program = """
import os
from freezegun import freeze_time
with freeze_time("2020-01-01"):
    from otel_pgpool import ConnectionPool, PoolTimeout
    with ConnectionPool(1, 1, os.environ["DATABASE_URL"], observer=None) as pool, pool.connection():
        try:
            pool.getconn(timeout=0.2)
        except PoolTimeout as error:
            print(0.2 <= error.waited < 5)
"""
    done = run_program(dsn, program)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
