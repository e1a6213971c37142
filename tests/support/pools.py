"""Pools without telemetry, their idle connections and holds, and what a pool tells an observer."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from psycopg2 import extensions

from otel_pgpool import ConnectionPool
from tests.support.database import ask
from tests.support.internals import core_of, start_pass
from tests.support.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg2.extensions import connection


def make(*args: Any, **options: Any) -> ConnectionPool:
    """Create a pool without telemetry, which these tests are not about."""
    options.setdefault("observer", None)
    return ConnectionPool(*args, **options)


def pid_of_a_checkout(pool: ConnectionPool, timeout: float | None = None) -> int:
    """Check out, use the connection, give it back."""
    with pool.connection(timeout) as conn:
        assert ask(conn, "select 1") == 1
        return conn.info.backend_pid


def fill(pool: ConnectionPool, count: int) -> list[int]:
    """Let the pool have ``count`` idle connections, and return their backends."""
    conns = [pool.getconn() for _ in range(count)]
    pids = [conn.info.backend_pid for conn in conns]
    for conn in conns:
        pool.putconn(conn)
    return pids


def let_lie(pool: ConnectionPool, seconds: float = 1.0) -> None:
    """As if every idle connection had been idle for so much longer."""
    for slot in list(core_of(pool).idle):
        slot.seen -= seconds
        slot.returned -= seconds


def let_last(pool: ConnectionPool, seconds: float = 60.0) -> None:
    """As if every hold had lasted so much longer."""
    for hold in core_of(pool).holds_now():
        hold.acquired -= seconds
    start_pass(pool)  # the maintenance looks now


def pool_threads() -> list[threading.Thread]:
    """Threads that work for pools; the watch over deadlines is the process's."""
    return [
        thread
        for thread in threading.enumerate()
        if thread.name.startswith(("otel_pgpool-maintenance", "otel_pgpool-connector"))
    ]


class Gate:
    """A ``connection_factory`` that lets the first ``free`` connects through and holds up the others."""

    def __init__(self, free: int) -> None:
        self.free = free
        self.calls = 0
        self.at_once = 0
        self.most_at_once = 0
        self._lock = threading.Lock()
        self._open = threading.Event()

    def __call__(self, *args: Any, **kwargs: Any) -> connection:
        with self._lock:
            self.calls += 1
            held_up = self.calls > self.free
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if held_up:
                assert self._open.wait(PATIENCE)
            return extensions.connection(*args, **kwargs)
        finally:
            with self._lock:
                self.at_once -= 1

    def open(self) -> None:
        self._open.set()


class Recorder:
    """An observer that notes every call as (name, arguments)."""

    NAMES = frozenset(
        [
            "attached",
            "started",
            "acquired",
            "failed",
            "released",
            "abandoned",
            "reclaimed",
            "held_long",
            "connected",
            "connect_failed",
            "discarded",
            "outage_started",
            "outage_ended",
            "utilization_changed",
        ]
    )

    def __init__(self) -> None:
        self.events: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name not in self.NAMES:
            raise AttributeError(name)
        return lambda *args: self.events.append((name, args))

    def calls(self, name: str) -> list[tuple[Any, ...]]:
        return [args for event, args in self.events.copy() if event == name]

    @property
    def outcomes(self) -> list[str]:
        """Of the checkouts that have come back, in order."""
        return [checkout.outcome for (checkout,) in self.calls("released")]

    @property
    def last(self) -> Any:
        """The checkout that came back last."""
        return self.calls("released")[-1][0]
