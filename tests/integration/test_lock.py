"""The pool calls nothing that can block while the pool holds its lock."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

import pytest
from psycopg2 import extensions

from otel_pgpool import ConnectionPool, PoolTimeout
from tests.support.database import ask
from tests.support.pools import Recorder, let_lie, make
from tests.support.waiting import PATIENCE, in_thread, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable


class Stuck:
    """The first call once it is armed blocks until it may go on."""

    def __init__(self) -> None:
        self.armed = False
        self.entered, self.go_on = threading.Event(), threading.Event()

    def __call__(self, *_args: object) -> dict[str, Any]:
        if self.armed:
            self.armed = False
            self.entered.set()
            assert self.go_on.wait(PATIENCE)
        return {}


STUCK = Stuck()


class SlowConnection(extensions.connection):
    slow = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._when("connect")
        super().__init__(*args, **kwargs)

    def _when(self, deed: str) -> None:
        if SlowConnection.slow == deed:
            STUCK()

    def commit(self) -> None:
        self._when("commit")
        super().commit()

    def rollback(self) -> None:
        self._when("rollback")
        super().rollback()

    def close(self) -> None:
        self._when("close")
        super().close()


class SlowObserver(Recorder):
    def __init__(self, slow: str) -> None:
        super().__init__()
        self.slow = slow

    def __getattr__(self, name: str) -> Any:
        if name == self.slow:
            return STUCK
        return super().__getattr__(name)


class SlowHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        STUCK()


def work(pool: ConnectionPool) -> None:
    let_lie(pool)
    with pool.connection() as conn:
        ask(conn, "select 1")


def fail(pool: ConnectionPool) -> None:
    with pytest.raises(ZeroDivisionError), pool.connection() as conn:  # noqa: PT012 - the block itself is the subject
        ask(conn, "select 1")
        raise ZeroDivisionError


def discard(pool: ConnectionPool) -> None:
    pool.putconn(pool.getconn(), close=True)


def grow(pool: ConnectionPool) -> None:
    pool.resize(4, 4)
    assert STUCK.entered.wait(PATIENCE)


def time_out(pool: ConnectionPool) -> None:
    conns = [pool.getconn() for _ in range(3)]
    try:
        with pytest.raises(PoolTimeout):
            pool.getconn(timeout=0)
    finally:
        for conn in conns:
            pool.putconn(conn)


DEEDS: dict[str, tuple[dict[str, Any], Callable[[ConnectionPool], None]]] = {
    "connect": ({}, grow),
    "configure": ({"configure": STUCK}, grow),
    "credentials": ({"credentials": STUCK}, grow),
    "check": ({"check": STUCK}, work),
    "commit": ({}, work),
    "rollback": ({}, fail),
    "reset": ({"reset": STUCK}, work),
    "close": ({}, discard),
    "telemetry of a request": ({"observer": "started"}, work),
    "telemetry of a hand-over": ({"observer": "acquired"}, work),
    "telemetry of a return": ({"observer": "released"}, work),
    "telemetry of a discard": ({"observer": "discarded"}, discard),
    "telemetry of a connect": ({"observer": "connected"}, grow),
}


@pytest.mark.parametrize("deed", DEEDS)
def test_no_connect_ping_rollback_log_or_telemetry_while_holding_the_lock(
    dsn: str, monkeypatch: pytest.MonkeyPatch, deed: str
) -> None:
    """While one thread is stuck in any of these, the others borrow, give back and look as if nothing were."""
    options, act = DEEDS[deed]
    STUCK.__init__()  # type: ignore[misc]
    if "observer" in options:
        options = {"observer": SlowObserver(options["observer"])}
    with make(3, 3, dsn, connection_factory=SlowConnection, timeout=PATIENCE, **options) as pool:
        monkeypatch.setattr(SlowConnection, "slow", deed)
        STUCK.armed = True
        stuck = in_thread(act, pool)
        try:
            assert STUCK.entered.wait(PATIENCE)
            assert_in_service(pool)
        finally:
            STUCK.go_on.set()
            stuck.result(PATIENCE)


def assert_in_service(pool: ConnectionPool) -> None:
    """Everything a neighbour may want is done while the other is stuck."""

    def neighbour() -> None:
        for _ in range(3):
            with pool.connection(5) as conn:
                ask(conn, "select 1")
        pool.putconn(pool.getconn("by key"), "by key")
        pool.stats()
        pool.holders()
        repr(pool)

    for future in [in_thread(neighbour) for _ in range(2)]:
        future.result(10)


def test_no_log_while_holding_the_lock(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log handler that is stuck over the record of a timeout holds up nobody else."""
    logger, handler = logging.getLogger("otel_pgpool"), SlowHandler()
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "propagate", False)
    STUCK.__init__()  # type: ignore[misc]
    with ConnectionPool(3, 4, dsn, timeout=PATIENCE) as pool:
        pool.resize(3, 3)
        STUCK.armed = True
        held = [pool.getconn() for _ in range(3)]
        stuck = in_thread(pool.getconn, None)
        assert wait_until(lambda: pool.stats().waiting == 1)
        pool.putconn(held.pop())
        pool.putconn(stuck.result(PATIENCE))
        for conn in held:
            pool.putconn(conn)
        stuck = in_thread(time_out, pool)
        try:
            assert STUCK.entered.wait(PATIENCE)
            assert wait_until(lambda: pool.stats().timeouts == 1)
            pool.resize(3, 4)
            assert_in_service(pool)
        finally:
            STUCK.go_on.set()
            stuck.result(PATIENCE)
