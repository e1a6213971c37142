"""Name, target and levels of a SQLAlchemy engine and its pool, for SQLAlchemy 1.4 and 2."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine
from sqlalchemy.engine import URL, Engine
from sqlalchemy.pool import AssertionPool, QueuePool, SingletonThreadPool, StaticPool

from otel_pgpool.driver.target import UNKNOWN
from otel_pgpool.instrumentation.adapters.base import Levels
from otel_pgpool.instrumentation.adapters.sqlalchemy.drivers import driver_of_dialect
from otel_pgpool.instrumentation.adapters.sqlalchemy.private import creator_of, engine_behind, pool_records, queue_state
from otel_pgpool.instrumentation.guards import ignore_errors
from otel_pgpool.instrumentation.tracker import TRACKER_ATTR
from otel_pgpool.runtime.text import may_hold_password, printable

if TYPE_CHECKING:
    from otel_pgpool.instrumentation.adapters.base import PoolTarget
    from otel_pgpool.instrumentation.adapters.sqlalchemy.drivers.base import EngineDriver
    from otel_pgpool.instrumentation.adapters.sqlalchemy.private import Record

TARGET_KEYS = ("host", "port", "dbname", "user")
"""Keys of a URL's query that determine its target; the others may hold secrets."""


def read_levels(pool: Any) -> Levels:
    """Return the levels of a pool, or those of its tracker if the pool keeps none."""
    if isinstance(pool, QueuePool):
        records, max_overflow, overflow = queue_state(pool)
        size = pool.size()
        limit = 0 if max_overflow < 0 else size + max_overflow
        idle = sum(is_connected(record) for record in records)
        used = max(0, size - len(records) + overflow)  # negative for a pool that was disposed of
        return Levels(0, limit, used, idle, size or None)  # with a size of 0, QueuePool keeps all connections
    tracker = getattr(pool, TRACKER_ATTR, None)  # None for a pool that is not tracked yet
    held = 0 if tracker is None else len(tracker.held) + len(tracker.light)
    if isinstance(pool, (StaticPool, AssertionPool)):
        idle = not held and any(map(is_connected, pool_records(pool)))
        return Levels(0, 1, min(held, 1), int(idle), 1)
    if isinstance(pool, SingletonThreadPool):  # no limit: above its size, the pool closes connections of other threads
        connected = sum(map(is_connected, pool_records(pool)))
        return Levels(0, 0, held, max(0, connected - held), pool.size)
    return Levels(0, 0, held, 0, 0)


def is_connected(record: Record) -> bool:
    """Return whether a record has a connection."""
    return getattr(record, "dbapi_connection", None) is not None


def engine_of(given: Any) -> Engine | None:
    """Return the engine that an object is, or that an asynchronous engine has; None for any other object."""
    asynchronous = sys.modules.get("sqlalchemy.ext.asyncio")
    if asynchronous is not None and isinstance(given, asynchronous.AsyncEngine):
        given = given.sync_engine
    return given if isinstance(given, Engine) else None


def pool_owner(engine: Engine) -> Engine:
    """Return an engine, or the original of one that ``execution_options`` has made, which may soon be collected."""
    while (behind := engine_behind(engine)) is not None:
        engine = behind
    return engine


def engine_target(engine: Engine) -> PoolTarget:
    """Return the target of an engine's URL. The password is not read, because reading may fetch it.

    With a ``creator`` of the application the URL may be wrong, and is often empty; the target is then unknown.
    """
    driver = driver_of_dialect(engine.dialect)
    if driver is None or not made_by_create_engine(engine.pool):
        return UNKNOWN
    with ignore_errors:  # an engine that the application has built itself may have any object as its URL
        if not _contains_password(engine.url):
            return driver.target((), _parameters_of(engine.url))
    return UNKNOWN


def made_by_create_engine(pool: Any) -> bool:
    """Return whether ``create_engine`` has created a pool, and so determines how it connects."""
    return getattr(creator_of(pool), "__module__", None) == create_engine.__module__


def _contains_password(url: URL) -> bool:
    """Return whether another part of the URL contains the end of a password with an unescaped character."""
    parts = (url.host, url.database, *url.query, *url.query.values())
    return any("@" in str(part) for part in parts if part)


def _parameters_of(url: URL) -> dict[str, Any]:
    parameters: dict[str, Any] = {"host": url.host, "port": url.port, "dbname": url.database, "user": url.username}
    parameters |= {key: url.query[key] for key in TARGET_KEYS if key in url.query}
    hosts = parameters["host"]
    if isinstance(hosts, tuple):  # each with its port, or none
        pairs = [host.rpartition(":") if host.rpartition(":")[2].isdecimal() else (host, "", "") for host in hosts]
        parameters["host"] = ",".join(host for host, _, _ in pairs)
        parameters["port"] = ",".join(port for _, _, port in pairs)
    return {key: value for key, value in parameters.items() if value is not None}


def pool_name(pool: Any, target: PoolTarget) -> str:
    """Return a name for a pool without an engine: its ``logging_name``, or the target of its connection."""
    return _logging_name(pool) or target.name


def _logging_name(pool: Any) -> str:
    """Return the name that the application has given to its pool; empty if there is none.

    The name is also empty if it is a connection string by mistake, which may contain a password.
    """
    name = str(getattr(pool, "logging_name", None) or "")
    return "" if may_hold_password(name) else name


def engine_name(engine: Engine) -> str:
    """Return an engine's ``pool_logging_name``, or its URL without the password, or the driver's name."""
    name = _logging_name(engine.pool)
    if name:
        return name
    driver_name = printable(str(engine.dialect.driver))
    try:
        url = engine.url
        driver = driver_of_dialect(engine.dialect)
        if driver is None or _contains_password(url) or not _is_safe(url, driver):
            return driver_name
        query = {key: value for key, value in url.query.items() if key in TARGET_KEYS}
        return str(URL.create(url.drivername, url.username, None, url.host, url.port, url.database, query))
    except Exception:  # noqa: BLE001 - an engine that the application has built itself may have any object as its URL
        return driver_name


def _is_safe(url: URL, driver: EngineDriver) -> bool:
    """Return whether no part of a URL's target may contain a part of the password."""
    return driver.target((), _parameters_of(url)).address != ""
