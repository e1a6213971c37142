"""What an engine of SQLAlchemy's and its pool tell of themselves, 1.4 and 2: name, place, levels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine
from sqlalchemy.engine import URL, Engine
from sqlalchemy.pool import QueuePool, StaticPool

from otel_pgpool._target import Target, UnknownTarget, target_of
from otel_pgpool._texts import may_hold_password
from otel_pgpool.instrumentation.driver import parameters_of
from otel_pgpool.instrumentation.kind import Levels
from otel_pgpool.instrumentation.ledger import LEDGER
from otel_pgpool.instrumentation.lenient import lenient
from otel_pgpool.instrumentation.places import place_of

if TYPE_CHECKING:
    Record = Any
    """SQLAlchemy's own of a connection, which keeps its place in the pool when the connection is replaced."""

DRIVER = "psycopg2"
PLACED_IN_QUERY = ("host", "port", "dbname", "user")
"""What of a URL's query tells where it leads; the rest may hold secrets."""


def read_levels(pool: Any) -> Levels:
    """The pool's own figures; where it keeps none, the ledger's.

    A `QueuePool` is read past its methods, which take the lock of its queue, and count places that have lost their
    connection among the idle ones.
    """
    if isinstance(pool, QueuePool):
        queue = list(pool._pool.queue)  # type: ignore[attr-defined]  # of every queue that is not for asyncio
        size, overflow = pool.size(), pool._max_overflow  # -1 for no limit
        limit = 0 if overflow < 0 else size + overflow
        idle = sum(is_connected(record) for record in queue)
        used = max(0, size - len(queue) + pool._overflow)  # of a pool that was disposed of it goes below
        return Levels(0, limit, used, idle, size or None)  # a size of 0 keeps them all
    ledger = getattr(pool, LEDGER, None)  # none yet, where it has just been met
    held = 0 if ledger is None else len(ledger.holds)
    if isinstance(pool, StaticPool):
        idle = not held and is_connected(pool.__dict__.get("connection"))
        return Levels(0, 1, min(held, 1), int(idle), 1)
    return Levels(0, 0, held, 0, 0)


def is_connected(record: Record) -> bool:
    """Whether a connection lies in its place."""
    return getattr(record, "dbapi_connection", None) is not None


def owner_of_the_pool(engine: Engine) -> Engine:
    """Engines that ``execution_options`` makes stand in front of another, and may be gone before it."""
    while (behind := getattr(engine, "_proxied", None)) is not None:
        engine = behind
    return engine


def target_of_engine(engine: Engine) -> Target:
    """Where the URL leads, its password left alone: to read it may be to fetch it.

    With a ``creator`` of the program's own it need not be true, and is often empty.
    """
    if not is_an_engines(engine.pool):
        return UnknownTarget()
    with lenient:  # one that the program has put together itself may have anything there
        if not _is_torn(engine.url):
            return place_of((), _parameters_of(engine.url))
    return UnknownTarget()


def is_an_engines(pool: Any) -> bool:
    """Whether ``create_engine`` has made a pool, and said how it connects."""
    return getattr(getattr(pool, "_creator", None), "__module__", None) == create_engine.__module__


def _is_torn(url: URL) -> bool:
    """Whether a password with a character that was not escaped has its rest in another part of the URL."""
    parts = (url.host, url.database, *url.query, *url.query.values())
    return any("@" in str(part) for part in parts if part)


def _parameters_of(url: URL) -> dict[str, Any]:
    parameters: dict[str, Any] = {"host": url.host, "port": url.port, "dbname": url.database, "user": url.username}
    parameters |= {key: url.query[key] for key in PLACED_IN_QUERY if key in url.query}
    hosts = parameters["host"]
    if isinstance(hosts, tuple):  # each with its port, or none
        pairs = [host.rpartition(":") if host.rpartition(":")[2].isdecimal() else (host, "", "") for host in hosts]
        parameters["host"] = ",".join(host for host, _, _ in pairs)
        parameters["port"] = ",".join(port for _, _, port in pairs)
    return {key: value for key, value in parameters.items() if value is not None}


def name_of_pool(pool: Any, conn: Any) -> str:
    """Name a pool that no engine has, by its ``logging_name`` or by where a connection of it leads."""
    return logging_name_of(pool) or target_of((), parameters_of(conn)).name


def logging_name_of(pool: Any) -> str:
    """The name that the program has given to its pool; empty without one, and for a connection string by mistake."""
    name = str(getattr(pool, "logging_name", None) or "")
    return "" if may_hold_password(name) else name


def name_of(engine: Engine) -> str:
    """The ``pool_logging_name``, or the URL without its password; the driver's, where the URL is not told."""
    name = logging_name_of(engine.pool)
    if name:
        return name
    try:
        url = engine.url
        if _is_torn(url):
            return DRIVER
        Target((), _parameters_of(url))  # it refuses what may hold a part of the password
        query = {key: value for key, value in url.query.items() if key in PLACED_IN_QUERY}
        return str(URL.create(url.drivername, url.username, None, url.host, url.port, url.database, query))
    except Exception:  # noqa: BLE001 - an engine that the program has put together itself may have anything there
        return DRIVER
