"""What the tests of SQLAlchemy's pools share: an instrumented block, engines, and what is reported of checkouts.

They run on SQLAlchemy 1.4 and 2 alike.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from psycopg2 import extensions
from sqlalchemy import create_engine, event, text
from sqlalchemy.engine import make_url

from tests.support.instrumentation import instrumented
from tests.support.telemetry import served, unserved
from tests.support.urls import url_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from psycopg2.extensions import connection
    from sqlalchemy.engine import Engine
    from typing_extensions import Self

    from otel_pgpool import PgPoolInstrumentor
    from otel_pgpool.instrumentation.tracker import PoolTracker
    from tests.support.telemetry import Signals

POOL_NAME = "db.client.connection.pool.name"


def hooked(signals: Signals, **options: Any) -> AbstractContextManager[PgPoolInstrumentor]:
    """Instrument, with these signals and no long hold."""
    return instrumented(signals, **{"long_hold": None, **options})


class Engines:
    """Makes engines on a server, and leaves nothing of them behind."""

    def __init__(self, dsn: str) -> None:
        self.url = url_of(dsn, scheme="postgresql+psycopg2")
        self._made: list[Engine] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        for engine in self._made:
            engine.dispose()

    def __call__(self, url: str | None = None, **options: Any) -> Engine:
        engine = create_engine(url or self.url, **options)
        self._made.append(engine)
        return engine

    def forget(self, engine: Engine) -> Engine:
        """Leave it to the garbage collector."""
        self._made.remove(engine)
        return engine

    @property
    def name(self) -> str:
        """What an engine on the server is called that has no other name."""
        return str(make_url(self.url)._replace(password=None))


def select(conn: Any, sql: str = "select 1", **parameters: Any) -> Any:
    """Return the first value of a statement's first row, if there is one."""
    result = conn.execute(text(sql), parameters)
    return result.scalar() if result.returns_rows else None


def borrow(engine: Engine) -> int:
    """Check out, use the connection, give it back; the backend that served."""
    with engine.connect() as conn:
        return int(select(conn, "select pg_backend_pid()"))


def driver(conn: Any) -> connection:
    """Return the psycopg2 connection of a connection of SQLAlchemy."""
    found: connection = conn.connection.dbapi_connection
    return found


def fill(engine: Engine, count: int) -> list[int]:
    """Let the pool have ``count`` idle connections, and return their backends."""
    with ExitStack() as stack:
        return [driver(stack.enter_context(engine.connect())).info.backend_pid for _ in range(count)]


def engine_tracker(engine: Engine) -> PoolTracker:
    """Return the tracker of an engine's pool."""
    found: PoolTracker = vars(engine.pool)["_otel_pgpool"]
    return found


def waits(engine: Engine) -> Callable[[], bool]:
    """Whether somebody waits for a connection."""
    return lambda: "_otel_pgpool" in vars(engine.pool) and engine_tracker(engine).stats().waiting > 0


def lent(dsn: str, name: str, **changes: Any) -> dict[str, Any]:
    """All attributes of a checkout that was served; a keyword replaces ``otel_pgpool.<keyword>``."""
    return {**served(dsn, **{"outcome": "released", **changes}), POOL_NAME: name}


def denied(dsn: str, name: str, path: str, outcome: str, error: str, **changes: Any) -> dict[str, Any]:
    """All attributes of a checkout that failed."""
    return {**unserved(dsn, path, outcome, error, **changes), POOL_NAME: name}


def attribute(span: Any, name: str) -> Any:
    """One of ours."""
    return span.attributes.get(f"otel_pgpool.{name}")


def told(signals: Signals, name: str) -> list[Any]:
    """Return an attribute of otel_pgpool of each checkout that has ended, in order."""
    return [attribute(span, name) for span in signals.named("pool.checkout")]


@contextmanager
def listening(target: Any, name: str, listener: Callable[..., Any]) -> Iterator[None]:
    """Listen to an event, as an application would."""
    event.listen(target, name, listener)
    try:
        yield
    finally:
        event.remove(target, name, listener)


def parameters_of(dsn: str) -> dict[str, Any]:
    parsed: dict[str, Any] = extensions.parse_dsn(dsn)
    return parsed
