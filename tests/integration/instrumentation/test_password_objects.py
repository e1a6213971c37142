"""A password may be an object that fetches one whenever its text is asked for: the instrumentation does not ask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy
from psycopg2.extensions import parse_dsn
from psycopg2.pool import ThreadedConnectionPool
from sqlalchemy import event
from sqlalchemy.engine import URL

from tests.support.instrumentation import tracker_of
from tests.support.sqlalchemy_engines import borrow, engine_tracker, hooked

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.sqlalchemy_engines import Engines
    from tests.support.telemetry import Signals


class Vault:
    """Counts how often it is asked."""

    def __init__(self, password: str) -> None:
        self.asked = 0
        self.password = password

    def __str__(self) -> str:
        self.asked += 1
        return self.password


def with_and_without(signals: Signals, dsn: str, deed: Callable[[Vault], None]) -> list[int]:
    """How often a deed asks without the instrumentation, and with it."""
    password = parse_dsn(dsn)["password"]
    counts = []
    vault = Vault(password)
    deed(vault)
    counts.append(vault.asked)
    vault = Vault(password)
    with hooked(signals):
        deed(vault)
    return [*counts, vault.asked]


def test_url_of_an_engine(signals: Signals, engines: Engines, dsn: str) -> None:
    """Neither at the first checkout nor after a dispose, nor where the server refuses; the place is told."""
    place: dict[str, Any] = parse_dsn(dsn)

    def deed(vault: Vault) -> None:
        url = URL.create(
            "postgresql+psycopg2", place["user"], vault, place["host"], int(place["port"]), place["dbname"]
        )  # type: ignore[arg-type]  # SQLAlchemy takes what can be made a text
        engine = engines(url)  # type: ignore[arg-type]  # likewise
        for _ in range(3):
            borrow(engine)
        engine.dispose()
        borrow(engine)
        wrong = engines(url.set(database="no_such_database"))  # type: ignore[arg-type]  # likewise
        with pytest.raises(sqlalchemy.exc.OperationalError):
            borrow(wrong)

    without, with_it = with_and_without(signals, dsn, deed)
    assert without == with_it == 2
    (checkout, *_rest) = signals.named("pool.checkout")
    assert (checkout.attributes or {})["server.address"] == place["host"]
    assert (checkout.attributes or {})["server.port"] == int(place["port"])


def test_listener_that_gives_a_password(signals: Signals, engines: Engines, dsn: str) -> None:
    """One of ``do_connect`` that puts such an object among the parameters."""

    def deed(vault: Vault) -> None:
        engine = engines()

        def give(_dialect: Any, _record: Any, _args: Any, parameters: Any) -> None:
            parameters["password"] = vault

        event.listen(engine, "do_connect", give)
        borrow(engine)
        engine.dispose()
        borrow(engine)

    without, with_it = with_and_without(signals, dsn, deed)
    assert without == with_it == 2


def test_keyword_of_a_stock_pool(signals: Signals, dsn: str) -> None:
    """psycopg2 makes a text of it at each connect, and nobody else does."""

    def deed(vault: Vault) -> None:
        pool = ThreadedConnectionPool(1, 2, dsn, password=vault)
        pool.putconn(pool.getconn())
        pool.closeall()

    without, with_it = with_and_without(signals, dsn, deed)
    assert without == with_it == 1
    assert (signals.checkout().attributes or {})["server.address"] == parse_dsn(dsn)["host"]


def test_place_that_is_an_object(signals: Signals, dsn: str) -> None:
    """A host that is no text is not asked for it either: nothing is said of where that pool leads."""
    place: dict[str, Any] = parse_dsn(dsn)

    class Host(Vault):
        def __str__(self) -> str:
            self.asked += 1
            return str(place["host"])

    host = Host("")
    with hooked(signals):
        pool = ThreadedConnectionPool(1, 1, **{**place, "host": host})
        assert tracker_of(pool).name == "unknown"
        pool.putconn(pool.getconn())
        pool.closeall()
    assert host.asked == 1


def test_dialect_that_is_asked_how_to_connect(signals: Signals, engines: Engines) -> None:
    """Its ``create_connect_args``, which may fetch a token, is the engine's to call."""
    dialect = sqlalchemy.create_engine(engines.url).dialect.__class__
    asked = []

    class Counting(dialect):  # type: ignore[misc, valid-type]  # made at run time
        supports_statement_cache = True

        def create_connect_args(self, url: URL) -> Any:
            asked.append(url)
            return super().create_connect_args(url)

    sqlalchemy.dialects.registry.register("postgresql.counting", __name__, "Counting")
    globals()["Counting"] = Counting
    with hooked(signals):
        engine = engines(engines.url.replace("+psycopg2", "+counting"))
        borrow(engine)
        assert engine_tracker(engine).target.address
        engine.dispose()
        borrow(engine)
    assert len(asked) == 1
