"""Whatever an attempt to connect waits for, it ends in time, the outage is told, and the pool serves again."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from psycopg2 import extensions, extras

from otel_pgpool import ConnectionPool, PoolTimeout
from otel_pgpool.driver import connect_target as targets
from otel_pgpool.driver.attempt import ConnectAttempt
from otel_pgpool.pool import connect as connecting
from tests.support.database import ask
from tests.support.internals import connectors_of
from tests.support.pools import Recorder
from tests.support.waiting import PATIENCE, in_thread, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from psycopg2.extensions import connection


@contextmanager
def wait_callback(callback: Callable[..., object] = extras.wait_select) -> Iterator[None]:
    extensions.set_wait_callback(callback)
    try:
        yield
    finally:
        extensions.set_wait_callback(None)


class Gate:
    """Something that callers wait for until it is opened."""

    def __init__(self) -> None:
        self.is_open = threading.Event()
        self.waiting = 0

    def pass_through(self) -> None:
        self.waiting += not self.is_open.is_set()
        assert self.is_open.wait(PATIENCE)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.is_open.set()


@pytest.fixture
def silent() -> Iterator[int]:
    """Provide the port of a server that accepts connections and sends nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def is_told(recorder: Recorder) -> bool:
    return bool(recorder.calls("outage_started"))


def served(pool: ConnectionPool) -> bool:
    with pool.connection(timeout=PATIENCE) as conn:
        return bool(ask(conn, "select 1"))


def test_a_silent_server_under_a_wait_callback(dsn: str, silent: int) -> None:
    """Its connects end after ``connect_timeout``, which libpq does not heed there; then the true server is reached."""
    recorder, place = Recorder(), {**extensions.parse_dsn(dsn), "port": str(silent)}
    with (
        wait_callback(),
        ConnectionPool(
            0, 2, credentials=lambda: place, connect_timeout=1, observer=recorder, open=False, host="127.0.0.1"
        ) as pool,
    ):
        waiter = in_thread(served, pool)
        assert wait_until(lambda: is_told(recorder))
        place.update(extensions.parse_dsn(dsn))
        assert waiter.result(PATIENCE)
        assert recorder.calls("outage_ended")
        assert pool.stats().retries > 0


def made_by_a_function(dsn: str) -> connection:
    return extensions.connection(dsn)


@pytest.mark.parametrize("factory", [None, extras.LoggingConnection, extensions.connection, made_by_a_function])
@pytest.mark.parametrize("by_place", [True, False])
def test_factories_under_a_wait_callback(dsn: str, factory: Any, by_place: bool) -> None:
    """Connections and cursors are of the program's own classes, however it has given them."""
    factories = (factory, extras.RealDictCursor)
    named = dict(zip(("connection_factory", "cursor_factory"), factories, strict=True))
    args, kwargs = ((dsn, *factories), {}) if by_place else ((dsn,), named)
    with wait_callback(), ConnectionPool(1, 1, *args, **kwargs) as pool:
        conn = pool.getconn()
        if factory is extras.LoggingConnection:
            conn.initialize(__import__("io").StringIO())
        assert type(conn) is (factory if isinstance(factory, type) else extensions.connection)
        assert conn.cursor_factory is extras.RealDictCursor
        pool.putconn(conn)


def test_credentials_that_hang(dsn: str, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are given up, and asked again; what the first ones give at last is closed."""
    monkeypatch.setattr(targets, "CREDENTIALS_TIMEOUT", 0.2)
    recorder, asked = Recorder(), []

    def credentials() -> Mapping[str, str]:
        asked.append(len(asked))
        if len(asked) == 1:
            gate.pass_through()
        return {"application_name": "credentials_that_hang"}

    with ConnectionPool(0, 1, dsn, credentials=credentials, observer=recorder) as pool:
        assert served(pool)
        ((connect,),) = recorder.calls("outage_started")
        assert connect.message == "credentials did not end within 0.2 s"
        gate.is_open.set()
        assert wait_until(lambda: not connectors_of(pool)._stuck)
        assert wait_until(lambda: backends(dsn, "credentials_that_hang") == 1)
        assert (pool.stats().created, pool.stats().size) == (1, 1)


def backends(dsn: str, name: str) -> int:
    conn = psycopg2.connect(dsn)
    try:
        with conn.cursor() as cur:
            cur.execute("select count(*) from pg_stat_activity where application_name = %s", (name,))
            return int(cur.fetchone()[0])  # type: ignore[index]
    finally:
        conn.close()


def test_a_connect_that_hangs(dsn: str, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a name server that does not answer, which libpq does not bound."""
    monkeypatch.setattr(targets.TimeLimits, "of_libpq", 0.2)
    connect, calls = psycopg2.connect, []

    def slow_connect(*args: Any, **kwargs: Any) -> connection:
        calls.append(args)
        if len(calls) == 1:
            gate.pass_through()
        return connect(*args, **kwargs)

    monkeypatch.setattr(psycopg2, "connect", slow_connect)
    recorder = Recorder()
    with ConnectionPool(0, 1, dsn, observer=recorder) as pool:
        assert served(pool)
        assert is_told(recorder)


def test_a_configure_that_hangs(dsn: str, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it waits for something else than the server."""
    monkeypatch.setattr(connecting, "CONFIGURE_TIMEOUT", 0.2)
    calls: list[connection] = []

    def configure(conn: connection) -> None:
        calls.append(conn)
        if len(calls) == 1:
            gate.pass_through()

    with ConnectionPool(0, 1, dsn, configure=configure) as pool:
        assert served(pool)
        gate.is_open.set()
        assert wait_until(lambda: calls[0].closed)


def test_attempts_that_never_end(
    dsn: str, gate: Gate, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """There are never more than some of them; the log says so; once one ends, the pool serves again."""
    monkeypatch.setattr(targets, "CREDENTIALS_TIMEOUT", 0.05)
    monkeypatch.setattr(connecting, "MAX_STUCK", 3)

    def credentials() -> Mapping[str, str]:
        gate.pass_through()
        return {}

    with ConnectionPool(0, 1, dsn, name="vault", credentials=credentials) as pool:
        with pytest.raises(PoolTimeout, match="did not end within"):
            pool.getconn(timeout=3)
        assert wait_until(lambda: "pool vault: 3 attempts to connect have not ended" in caplog.text)
        assert gate.waiting == 3
        gate.is_open.set()
        assert served(pool)


def test_closing_while_an_attempt_hangs(dsn: str, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """`close` waits for no attempt that was given up; `wait` and the constructor raise what the attempt ended with."""
    monkeypatch.setattr(targets, "CREDENTIALS_TIMEOUT", 0.2)

    def credentials() -> Mapping[str, str]:
        gate.pass_through()
        return {}

    with pytest.raises(psycopg2.OperationalError, match="credentials did not end within"):
        ConnectionPool(1, 1, dsn, credentials=credentials)
    assert gate.waiting > 0  # it hangs still; the next attempt may have begun before the pool was closed


def test_wait_callbacks_that_overlap(dsn: str) -> None:
    """Of two bounded connects at a time, in two threads, neither leaves a bound behind."""
    calls = []

    def original(conn: connection) -> None:
        calls.append(conn)
        extras.wait_select(conn)

    first, second = ConnectAttempt(), ConnectAttempt()
    extensions.set_wait_callback(original)
    try:
        outer, inner = first.poll_within(0.0), second.poll_within(0.0)
        outer.__enter__()
        inner.__enter__()
        outer.__exit__(None, None, None)
        inner.__exit__(None, None, None)
        with psycopg2.connect(dsn) as conn:
            assert ask(conn, "select 1") == 1
        conn.close()
        assert calls
    finally:
        extensions.set_wait_callback(None)
