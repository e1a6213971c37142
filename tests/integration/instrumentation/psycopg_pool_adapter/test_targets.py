"""Where a pool of psycopg_pool connects to, and its name: read without a call of the application, and no secrets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import ConnectionPool, NullConnectionPool

from tests.support.instrumentation import lent, name_of, tracker_of
from tests.support.psycopg_pools import RELEASE, opened, settled
from tests.support.telemetry import assert_exactly

if TYPE_CHECKING:
    from tests.support.telemetry import Signals

pytestmark = pytest.mark.usefixtures("instrumentation")


@pytest.mark.parametrize("form", ["url", "key=value", "keywords"])
def test_plain_arguments(signals: Signals, dsn: str, form: str) -> None:
    """A URL, libpq's form and keywords give the same target; psycopg's own keywords do not matter."""
    parameters = conninfo_to_dict(dsn)
    conninfo, kwargs = {
        "url": (dsn, {}),
        "key=value": (" ".join(f"{key}={value}" for key, value in parameters.items()), {"autocommit": True}),
        "keywords": ("", {**parameters, "prepare_threshold": None}),
    }[form]
    with opened(ConnectionPool, conninfo, 1, kwargs=kwargs) as pool, pool.connection():
        pass
    assert_exactly(signals.checkout().attributes, lent(dsn))
    assert str(parameters["password"]) not in signals.everything()


def test_name(signals: Signals, dsn: str) -> None:
    """A pool has the name that the application gave, and with the same name a number."""
    with opened(ConnectionPool, dsn, 1, name="shop") as pool, opened(ConnectionPool, dsn, 1, name="shop") as other:
        assert [tracker_of(each).name for each in (pool, other)] == ["shop", "shop #2"]


@pytest.mark.parametrize("name", ["postgresql://me:secret-word@host/db", "password=secret-word"])
def test_name_that_is_a_connection_string(signals: Signals, dsn: str, name: str) -> None:
    """A connection string in the place of a name is not shown."""
    with opened(ConnectionPool, dsn, 1, name=name) as pool:
        assert tracker_of(pool).name == name_of(dsn)
        with pool.connection():
            pass
    assert "secret-word" not in signals.everything()


@pytest.mark.parametrize("which", ["conninfo", "kwargs"])
def test_callables(signals: Signals, dsn: str, which: str) -> None:
    """Arguments that are functions are called by the pool only; the target is known from the first connection on."""
    if RELEASE < (3, 3):
        pytest.skip("since 3.3")
    calls = []

    def conninfo() -> str:
        calls.append("conninfo")
        return dsn

    def kwargs() -> dict[str, Any]:
        calls.append("kwargs")
        return dict(conninfo_to_dict(dsn))

    given: dict[str, Any] = {"conninfo": {"conninfo": conninfo}, "kwargs": {"conninfo": "", "kwargs": kwargs}}[which]
    pool: Any = NullConnectionPool(**given, max_size=1, open=True)
    tracker = tracker_of(pool)
    assert tracker.target.address == ""
    assert calls == []
    with pool.connection():
        pass
    assert calls == [which]
    assert tracker.target.address == conninfo_to_dict(dsn)["host"]
    with pool.connection():
        pass
    attributes = signals.named("pool.checkout")[-1].attributes or {}
    assert attributes["server.address"] == conninfo_to_dict(dsn)["host"]
    pool.close()


def test_objects_that_fetch_their_value(signals: Signals, dsn: str) -> None:
    """An argument that is no plain value is not asked for its text by the instrumentation."""
    asked = []

    class Host(str):
        __slots__ = ()

        def __str__(self) -> str:
            asked.append(self)
            return super().__str__()

    parameters = conninfo_to_dict(dsn)
    kwargs = {**parameters, "host": Host(parameters["host"])}
    pool: Any = NullConnectionPool("", kwargs=kwargs, max_size=1, open=True)
    assert tracker_of(pool).target.address == ""
    assert asked == []
    with pool.connection():
        pass
    pool.close()


def test_conninfo_that_cannot_be_parsed(signals: Signals) -> None:
    """The program gets the driver's error; nothing of the text is shown."""
    pool: Any = NullConnectionPool("host=x secret-word", max_size=1, open=True)
    with pytest.raises(Exception, match="secret-word"):
        pool.getconn()
    assert tracker_of(pool).name == pool.name
    assert "secret-word" not in signals.everything()
    pool.close()


def test_password_in_an_error(signals: Signals, dsn: str) -> None:
    """An error's text is shown as far as it is known, and quotes public values only."""
    with opened(NullConnectionPool, dsn, 1, kwargs={"password": "secret-word", "user": "nobody"}) as pool:
        with pytest.raises(Exception, match="nobody"):
            pool.getconn()
        settled(pool)
    told = signals.everything()
    assert "secret-word" not in told
    assert "nobody" in told
