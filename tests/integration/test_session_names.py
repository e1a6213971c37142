"""The names of sessions on the server: service and pool, a program's own, and the trace of a sampled checkout."""

from __future__ import annotations

import gc
import re
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Decision, Sampler, SamplingResult
from psycopg2.extensions import parse_dsn

from otel_pgpool import ConnectionPool, PoolTimeout, reset_session
from otel_pgpool.telemetry import Telemetry
from tests.support.database import ask, kill
from tests.support.hostile_server import READY, HostileServer, error, login, message
from tests.support.internals import core_of
from tests.support.pools import Recorder, fill, let_lie, make
from tests.support.processes import frozen, in_child
from tests.support.proxy import Condition, Proxy
from tests.support.servers import ClonedServer
from tests.support.telemetry import Signals, assert_exactly, served
from tests.support.urls import url_of
from tests.support.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from psycopg2.extensions import connection

    from otel_pgpool.demo.postgres import PostgresServer

VARIABLE = "OTEL_PGPOOL_APPLICATION_NAME"
TRACEPARENT = re.compile("00-[0-9a-f]{32}-[0-9a-f]{16}-01")


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """Log each statement, with the name of its session before it."""
    with ClonedServer(settings={"log_line_prefix": "<%a> ", "log_statement": "all"}) as server:
        yield server


@pytest.fixture
def trace_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "trace")


def name_of(admin: connection, conn: connection) -> str:
    """Return the session's name, as others see it."""
    return str(ask(admin, "select application_name from pg_stat_activity where pid = %s", conn.info.backend_pid))


@pytest.fixture(autouse=True)
def alone(admin: connection) -> None:
    """Wait until the server has ended the sessions of the test before."""
    assert wait_until(lambda: not names(admin))


def names(admin: connection) -> set[str]:
    """Return the names of all sessions but that of ``admin``."""
    with admin.cursor() as cur:
        cur.execute(
            "select application_name from pg_stat_activity "
            "where backend_type = 'client backend' and pid <> pg_backend_pid()"
        )
        return {name for (name,) in cur.fetchall()}


def current_traceparent() -> str:
    context = trace.get_current_span().get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-01"


class Log:
    """The statements that the server has logged since the last look."""

    def __init__(self, server: PostgresServer) -> None:
        self._path = Path(server.socket_dir, "log")
        self._read = self._path.stat().st_size

    def statements(self) -> list[tuple[str, str]]:
        """Return the name and the text of each statement that is not the test's."""
        with self._path.open("rb") as log:
            log.seek(self._read)
            text = log.read().decode()
            self._read = log.tell()
        found = re.findall(r"^<(.*?)> LOG:  statement: (.*)$", text, re.MULTILINE)
        return [(name, statement) for name, statement in found if name != "admin"]


@pytest.fixture
def log(server: PostgresServer) -> Log:
    return Log(server)


# Service and pool


DSNS: dict[str, Callable[[str], tuple[tuple[Any, ...], dict[str, Any]]]] = {
    "url": lambda dsn: ((dsn,), {}),
    "key=value": lambda dsn: ((" ".join(f"{key}={value}" for key, value in parse_dsn(dsn).items()),), {}),
    "keywords": lambda dsn: ((), parse_dsn(dsn)),
    "both": lambda dsn: ((url_of(dsn, dbname=None),), {"dbname": "postgres"}),
    "credentials": lambda dsn: (
        (url_of(dsn, password=None),),
        {"credentials": lambda: {"password": parse_dsn(dsn)["password"]}},
    ),
}


@pytest.mark.parametrize("kind", [*DSNS, "service"])
def test_sessions_have_the_names_of_service_and_pool(
    dsn: str, admin: connection, kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """However the server is given. A pool without an observer reads the environment."""
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
    if kind == "service":
        lines = [f"{key}={value}" for key, value in parse_dsn(dsn).items()]
        monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
        (tmp_path / "services").write_text("\n".join(["[one]", *lines]))
        args, kwargs = ("service=one",), {}
    else:
        args, kwargs = DSNS[kind](dsn)
    with make(1, 1, *args, name="orders", **kwargs) as pool, pool.connection() as conn:
        assert name_of(admin, conn) == "shop/orders"


@pytest.mark.parametrize("how", ["dsn", "keyword", "fallback", "variable", "service"])
def test_a_programs_own_name_goes_before(
    dsn: str, admin: connection, how: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In the DSN, as a keyword, as PGAPPNAME, or in a service file."""
    args: tuple[Any, ...] = (dsn,)
    kwargs: dict[str, Any] = {}
    if how == "dsn":
        args = (url_of(dsn, application_name="mine"),)
    elif how == "variable":
        monkeypatch.setenv("PGAPPNAME", "mine")
    elif how == "service":
        monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
        (tmp_path / "services").write_text("[one]\napplication_name=mine")
        kwargs = {"service": "one"}
    else:
        kwargs = {"application_name" if how == "keyword" else "fallback_application_name": "mine"}
    with make(1, 1, *args, **kwargs) as pool, pool.connection() as conn:
        assert name_of(admin, conn) == "mine"


def test_the_service_is_the_tracer_providers(
    dsn: str, admin: connection, signals: Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two pools of a process are told apart; each has the service of the provider that its spans go to."""
    monkeypatch.setenv("OTEL_SERVICE_NAME", "other")
    provider = TracerProvider(resource=Resource({"service.name": "shop"}), shutdown_on_exit=False)
    with (
        ConnectionPool(1, 1, dsn, name="orders", observer=Telemetry(provider, signals.meter_provider)),
        ConnectionPool(1, 1, dsn, name="orders", observer=Telemetry(provider, signals.meter_provider)),
        ConnectionPool(1, 1, dsn, name="stock", observer=Recorder()),
    ):
        assert names(admin) == {"shop/orders", "shop/orders #2", "other/stock"}


def test_a_name_that_is_not_ascii_is_escaped_by_the_server(
    dsn: str, admin: connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server gets at most 63 bytes, and shows the others' bytes in its own way."""
    monkeypatch.setenv("OTEL_SERVICE_NAME", "Lädchen" + "ä" * 40)
    with make(1, 1, dsn) as pool, pool.connection() as conn:
        assert name_of(admin, conn).startswith(r"L\xc3\xa4dchen\xc3\xa4")


def test_a_child_of_a_fork_has_the_name_too(
    dsn: str, admin: connection, monkeypatch: pytest.MonkeyPatch, fork: None
) -> None:
    """Its sessions are its own, its pool's name is the parent's."""
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
    with make(1, 1, dsn, name="orders") as pool:

        def look() -> Any:
            with pool.connection() as conn:
                return ask(conn, "show application_name")

        assert in_child(look) == "shop/orders"


# The trace


def use_block(pool: ConnectionPool, admin: connection) -> str:
    with pool.connection() as conn:
        ask(conn, "select 1")
        assert name_of(admin, conn) == current_traceparent()
        return name_of(admin, conn)


def use_failing_block(pool: ConnectionPool, admin: connection) -> str:
    seen = ""
    with suppress(psycopg2.Error), pool.connection() as conn:
        seen = name_of(admin, conn)
        ask(conn, "select 1 / 0")
    return seen


def use_by_hand(pool: ConnectionPool, admin: connection) -> str:
    conn = pool.getconn()
    ask(conn, "select 1")
    seen = name_of(admin, conn)
    pool.putconn(conn)
    return seen


def use_by_key(pool: ConnectionPool, admin: connection) -> str:
    conn = pool.getconn("key")
    seen = name_of(admin, conn)
    assert pool.getconn("key") is conn
    pool.putconn(key="key")
    return seen


def use_in_autocommit(pool: ConnectionPool, admin: connection) -> str:
    with pool.connection() as conn:
        conn.autocommit = True
        ask(conn, "select 1")
        return name_of(admin, conn)


def use_after_rollback(pool: ConnectionPool, admin: connection) -> str:
    with pool.connection() as conn:
        ask(conn, "select 1")
        conn.rollback()
        return name_of(admin, conn)


USES = [use_block, use_failing_block, use_by_hand, use_by_key, use_in_autocommit, use_after_rollback]


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("reset", [None, reset_session])
@pytest.mark.usefixtures("trace_on")
def test_a_sampled_checkout_names_its_session(
    dsn: str, admin: connection, signals: Signals, use: Callable[..., str], reset: Any
) -> None:
    """For as long as the hold lasts, for whoever looks; afterwards the session has its former name."""
    with signals.pool(1, 1, dsn, name="shop's \\ pool", reset=reset) as pool:
        (before,) = names(admin)
        assert before.endswith("/shop's \\ pool")
        for _ in range(2):
            seen = use(pool, admin)
            span = signals.named("pool.checkout")[-1].get_span_context()
            assert span is not None
            assert seen == f"00-{span.trace_id:032x}-{span.span_id:016x}-01"
            assert names(admin) == {before}
        assert pool.stats().created == 1


@pytest.mark.usefixtures("trace_on")
@pytest.mark.parametrize("reset", [None, reset_session])
def test_one_statement_at_the_checkout_and_one_at_the_release(dsn: str, signals: Signals, log: Log, reset: Any) -> None:
    """No BEGIN comes with them, and `reset_session` needs no statement at the release. The log has the trace."""
    with signals.pool(1, 1, dsn, reset=reset) as pool:
        (former,) = {slot.conn.get_parameter_status("application_name") for slot in core_of(pool).idle}
        log.statements()
        with pool.connection() as conn:
            named = current_traceparent()
            ask(conn, "select 7")
        last = "DISCARD ALL" if reset else f"SET application_name TO '{former}'"
        assert log.statements() == [
            (former, f"SET application_name TO '{named}'"),
            (named, "BEGIN"),
            (named, "select 7"),
            (named, "COMMIT"),
            (named, last),
        ]
    # Nothing of this is in the telemetry.
    assert_exactly(signals.checkout().attributes, served(dsn))
    assert signals.checkout().events == ()
    assert {span.name for span in signals.spans.ended} == {"pool.connect", "pool.checkout"}
    assert "application_name" not in signals.everything()


HOSTILE_NAMES: dict[str, Callable[[object], Any]] = {
    "injected": lambda _checkout: "'; drop table orders; --",
    "no text": lambda _checkout: 7,
    "raising": lambda _checkout: 1 / 0,
}
"""Functions in the place of `Telemetry.traceparent`."""


class RecordOnly(Sampler):
    def should_sample(self, *args: Any, **_options: Any) -> SamplingResult:
        _parent, _trace_id, _name, _kind, attributes, *_ = args
        return SamplingResult(Decision.RECORD_ONLY, attributes)

    def get_description(self) -> str:
        return "record only"


@pytest.mark.usefixtures("trace_on")
@pytest.mark.parametrize("kind", ["unsampled", "recorded only", "slow", "off", "none", "foreign", *HOSTILE_NAMES])
def test_no_other_checkout_sends_a_statement(dsn: str, log: Log, kind: str) -> None:
    """Not sampled, not recorded, in the mode `slow`, without spans, without telemetry, or with another observer.

    An observer that raises, or returns anything but a ``traceparent``, costs nothing either.
    """
    sampler = {"unsampled": ALWAYS_OFF, "recorded only": RecordOnly()}.get(kind, ALWAYS_ON)
    with Signals(sampler) as signals:
        observer: Any = signals.telemetry(spans=kind if kind in {"slow", "off"} else None)
        if kind in {"none", "foreign"}:
            observer = Recorder() if kind == "foreign" else None
        if kind in HOSTILE_NAMES:
            observer.traceparent = HOSTILE_NAMES[kind]
        with ConnectionPool(1, 1, dsn, observer=observer, timeout=PATIENCE) as pool:
            log.statements()
            with pool.connection():
                pass
            pool.putconn(pool.getconn())
            assert log.statements() == []


def test_without_the_variable_nothing_is_sent(dsn: str, signals: Signals, log: Log) -> None:
    with signals.pool(1, 1, dsn) as pool:
        log.statements()
        with pool.connection():
            pass
        assert log.statements() == []


@pytest.mark.usefixtures("trace_on")
def test_a_waiter_and_a_new_connection_are_named_too(dsn: str, admin: connection, signals: Signals) -> None:
    """Their paths are told as without names."""
    with signals.pool(0, 1, dsn) as pool:
        with pool.connection() as conn:
            assert name_of(admin, conn) == current_traceparent()
            seen: list[tuple[str, str]] = []

            def wait() -> None:
                with pool.connection() as conn:
                    seen.append((name_of(admin, conn), current_traceparent()))

            waiting = threading.Thread(target=wait)
            waiting.start()
            assert wait_until(lambda: pool.stats().waiting)
        waiting.join(PATIENCE)
        [(name, traceparent)] = seen
        assert name == traceparent
        assert not any(TRACEPARENT.fullmatch(name) for name in names(admin))
        assert pool.stats().checkouts == {"idle": 0, "queued": 1, "new": 1}
        assert pool.stats().created == 1


@pytest.mark.usefixtures("trace_on")
def test_a_holder_may_set_its_own_name(dsn: str, admin: connection, signals: Signals) -> None:
    """It stays, as without the option; one of its transaction ends with it, and the former name comes back."""
    with signals.pool(1, 1, dsn) as pool:
        (before,) = names(admin)
        with pool.connection() as conn:
            ask(conn, "set local application_name = 'batch'")
            assert name_of(admin, conn) == "batch"
        assert names(admin) == {before}
        with pool.connection() as conn:
            ask(conn, "set application_name = 'batch'")
        assert names(admin) == {"batch"}
        with pool.connection() as conn:
            assert name_of(admin, conn) == current_traceparent()
        assert names(admin) == {"batch"}


@pytest.mark.usefixtures("trace_on")
@pytest.mark.parametrize("reset", [None, reset_session, lambda conn: ask(conn, "reset work_mem")])
def test_a_name_of_configure_is_restored(dsn: str, admin: connection, signals: Signals, reset: Any) -> None:
    """Whether `reset` leaves the name, or resets it and `configure` sets it again."""

    def configure(conn: connection) -> None:
        ask(conn, "set application_name = 'it''s \\ mine'")

    with signals.pool(1, 1, dsn, configure=configure, reset=reset) as pool:
        for _ in range(2):
            assert names(admin) == {"it's \\ mine"}
            with pool.connection() as conn:
                assert name_of(admin, conn) == current_traceparent()
        assert names(admin) == {"it's \\ mine"}
        assert pool.stats().created == 1


@pytest.mark.usefixtures("trace_on")
def test_psycopg2s_settings_survive(dsn: str, signals: Signals) -> None:
    """Those of `configure` are the holder's and the next holder's."""

    def configure(conn: connection) -> None:
        conn.set_session(isolation_level="SERIALIZABLE", readonly=True)

    with signals.pool(1, 1, dsn, configure=configure) as pool:
        for _ in range(2):
            with pool.connection() as conn:
                assert not conn.autocommit
                assert (ask(conn, "show transaction_isolation"), conn.readonly) == ("serializable", True)
        assert pool.stats().created == 1


# What may go wrong


@pytest.mark.usefixtures("trace_on")
def test_a_dead_connection_is_replaced(dsn: str, admin: connection, signals: Signals) -> None:
    """The statement that names the session finds it, although it was used a moment ago and is not checked."""
    with signals.pool(1, 1, dsn) as pool:
        kill(admin, fill(pool, 1))
        for slot in core_of(pool).idle:
            slot.seen = slot.returned = slot.seen + 3600  # as if it had just been used
        with pool.connection() as conn:
            assert name_of(admin, conn) == current_traceparent()
        assert pool.stats().retries == 1
        assert pool.stats().discarded == {"broken": 1}


@pytest.mark.usefixtures("trace_on")
def test_a_frozen_server_costs_the_caller_its_timeout(dsn: str, signals: Signals) -> None:
    """And not more; a caller without time to wait gets its connection without a name."""
    with signals.pool(1, 1, dsn) as pool:
        (pid,) = fill(pool, 1)
        with frozen(pid):
            pool.putconn(pool.getconn(timeout=0))
            with pytest.raises(PoolTimeout) as caught:
                pool.getconn(timeout=0.4)
            assert 0.3 < caught.value.waited < 2
            assert caught.value.retries == 1
        with pool.connection():
            pass


@pytest.mark.usefixtures("trace_on")
def test_a_long_idle_connection_is_asked_once(dsn: str, signals: Signals, log: Log) -> None:
    """The statement that names the session is its check; a program's own check comes first."""
    checked: list[int] = []
    for check in ("auto", lambda conn: checked.append(ask(conn, "select 7"))):
        with signals.pool(1, 1, dsn, check=check) as pool:
            fill(pool, 1)
            let_lie(pool, 60)
            log.statements()
            with pool.connection():
                named = [statement for _, statement in log.statements()]
            assert [text[:20] for text in named if text not in {"BEGIN", "ROLLBACK"}] == (
                ["SET application_name"] if check == "auto" else ["select 7", "SET application_name"]
            )
            with pool.connection():
                pass
    assert checked == [7], "one that was used a moment ago is not checked"


@contextmanager
def other_server(answers: bool, reports: bool) -> Iterator[tuple[HostileServer, list[bytes]]]:
    """Start a server that refuses each statement, or says that it has done it, and reports its name or does not."""

    def answer(conn: socket.socket) -> None:
        conn.sendall(login(DateStyle="ISO, MDY", **({"application_name": "legacy"} if reports else {})))
        while head := conn.recv(5):
            conn.recv(int.from_bytes(head[1:], "big") - 4)
            if head[:1] == b"X":
                return
            asked.append(head)
            conn.sendall((message(b"C", b"SET\0") if answers else error("no", state="0A000", severity="ERROR")) + READY)

    asked: list[bytes] = []
    with HostileServer(answer) as server:
        yield server, asked


@pytest.mark.usefixtures("trace_on")
@pytest.mark.parametrize("answers", [True, False])
@pytest.mark.parametrize("reports", [True, False])
def test_a_server_that_does_not_do_it_costs_the_name_only(signals: Signals, answers: bool, reports: bool) -> None:
    """A proxy that refuses the statement, that ignores it, or that does not report the name, and is not asked then."""
    with other_server(answers, reports) as (server, asked), signals.pool(1, 1, server.dsn) as pool:
        for _ in range(3):
            with pool.connection() as conn:
                assert not conn.closed
        assert pool.stats().created == 1
        assert pool.stats().retries == 0
        assert len(asked) == (3 if reports else 0)


@pytest.mark.usefixtures("trace_on")
def test_a_name_that_cannot_be_restored_costs_the_connection(
    dsn: str, admin: connection, signals: Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is closed, and nobody gets it; the block's work is committed."""
    monkeypatch.setattr("otel_pgpool.driver.deadline.Deadline.__init__.__defaults__", (0.3,))
    with Proxy(parse_dsn(dsn)["port"]) as network, signals.pool(1, 1, url_of(dsn, port=network.port)) as pool:
        with pool.connection() as conn:
            pid = conn.info.backend_pid
            network.condition = Condition.BLACK_HOLE
        network.condition = Condition.NORMAL
        with pool.connection() as conn:
            assert conn.info.backend_pid != pid
        assert pool.stats().discarded == {"broken": 1}
        assert signals.named("pool.checkout")[0].attributes["otel_pgpool.outcome"] == "committed"


@pytest.mark.usefixtures("trace_on")
def test_a_child_of_a_fork_leaves_the_name_alone(dsn: str, admin: connection, signals: Signals, fork: None) -> None:
    """The session of a checkout across a fork is the parent's, and the child's sessions have names of their own."""
    with signals.pool(1, 2, dsn) as pool:
        (before,) = names(admin)
        with pool.connection() as conn:
            named = current_traceparent()

            def use() -> Any:
                pool.putconn(conn)
                with pool.connection() as own:
                    return ask(own, "show application_name") == current_traceparent() != named

            assert in_child(use) == "True"
            assert name_of(admin, conn) == named
        assert names(admin) == {before}


@pytest.mark.usefixtures("trace_on")
@pytest.mark.parametrize("way", ["generator", "dropped", "closeall"])
def test_no_other_end_leaves_a_name(dsn: str, admin: connection, signals: Signals, way: str) -> None:
    """A release inside the garbage collector, a dropped connection, a pool that is closed."""
    with signals.pool(1, 1, dsn) as pool:
        if way == "generator":

            def rows() -> Iterator[int]:
                with pool.connection():
                    yield 1

            cycle: list[Any] = [rows()]
            cycle.append(cycle)
            next(cycle[0])
            del cycle
        elif way == "dropped":
            pool.getconn()
        else:
            held = pool.getconn()
            pool.closeall()
            assert held.closed
        gc.collect()
        assert wait_until(lambda: not any(TRACEPARENT.fullmatch(name) for name in names(admin)))
