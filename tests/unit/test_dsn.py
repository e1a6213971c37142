"""Where a pool connects to: every form of a DSN, named without secrets, bad ones refused without showing them."""

from __future__ import annotations

import getpass
import traceback
from typing import Any

import psycopg2
import psycopg2.extras
import pytest

from otel_pgpool import ConnectionPool
from otel_pgpool.driver.attempt import ConnectAttempt
from otel_pgpool.driver.connect_target import CONNECT_TIMEOUT, ConnectTarget

ME = getpass.getuser()


pytestmark = pytest.mark.usefixtures("no_variables")


def target(*args: Any, **kwargs: Any) -> ConnectTarget:
    return ConnectTarget(args, kwargs)


@pytest.mark.parametrize(
    ("args", "kwargs", "expected", "name"),
    [
        (("postgresql://app@db:5433/shop",), {}, ("db", 5433, "shop"), "db:5433/shop"),
        (("postgres://app@db/shop",), {}, ("db", 5432, "shop"), "db:5432/shop"),
        (("postgresql://app:s%40cret@db/shop?sslmode=prefer",), {}, ("db", 5432, "shop"), "db:5432/shop"),
        (("postgresql://db",), {}, ("db", 5432, ME), f"db:5432/{ME}"),
        (("postgresql://app@db",), {}, ("db", 5432, "app"), "db:5432/app"),
        (("postgresql://app@db/a%20b",), {}, ("db", 5432, "a b"), "db:5432/a b"),
        (("postgresql://[::1]:5433/shop",), {}, ("::1", 5433, "shop"), "::1:5433/shop"),
        (("host=db port=5433 dbname=shop user=app",), {}, ("db", 5433, "shop"), "db:5433/shop"),
        (("host = db dbname = 'two words'",), {}, ("db", 5432, "two words"), "db:5432/two words"),
        (("hostaddr=10.0.0.7 dbname=shop",), {}, ("10.0.0.7", 5432, "shop"), "10.0.0.7:5432/shop"),
        (("dbname=shop",), {}, ("localhost", 5432, "shop"), "localhost:5432/shop"),
        (("",), {}, ("localhost", 5432, ME), f"localhost:5432/{ME}"),
        ((), {}, ("localhost", 5432, ME), f"localhost:5432/{ME}"),
        ((), {"dsn": "postgresql://db/shop"}, ("db", 5432, "shop"), "db:5432/shop"),
        ((), {"host": "db", "port": 5433, "dbname": "shop"}, ("db", 5433, "shop"), "db:5433/shop"),
        ((), {"host": "db", "port": "5433", "database": "shop"}, ("db", 5433, "shop"), "db:5433/shop"),
        (("postgresql://db/shop",), {"dbname": "other"}, ("db", 5432, "other"), "db:5432/other"),
        (
            ("host=/var/run/postgresql dbname=shop",),
            {},
            ("/var/run/postgresql", 5432, "shop"),
            "/var/run/postgresql:5432/shop",
        ),
        (
            ("postgresql:///shop?host=/tmp/sockets&port=6000",),
            {},
            ("/tmp/sockets", 6000, "shop"),
            "/tmp/sockets:6000/shop",
        ),
        (("postgresql://a:5432,b:5432/shop",), {}, ("a,b", 5432, "shop"), "a:5432,b:5432/shop"),
        (("postgresql://a:5432,b:5433/shop",), {}, ("a,b", None, "shop"), "a:5432,b:5433/shop"),
        (("postgresql://a,b/shop?port=5433",), {}, ("a,b", 5433, "shop"), "a:5433,b:5433/shop"),
        (("postgresql://a,b:5433/shop",), {}, ("a,b", None, "shop"), "a:5432,b:5433/shop"),
        (("postgresql://a,b:5432/shop",), {}, ("a,b", 5432, "shop"), "a:5432,b:5432/shop"),
        (("host=a,b port=5432,5433 dbname=shop",), {}, ("a,b", None, "shop"), "a:5432,b:5433/shop"),
        (("host=a,b dbname=shop",), {}, ("a,b", 5432, "shop"), "a:5432,b:5432/shop"),
    ],
)
def test_forms(args: tuple[Any, ...], kwargs: dict[str, Any], expected: tuple[str, int | None, str], name: str) -> None:
    """URL, key and value, keywords, several hosts, a Unix socket: address, port, database and the pool's name."""
    parsed = target(*args, **kwargs)
    assert (parsed.address, parsed.port, parsed.namespace) == expected
    assert parsed.name == name


def test_variables_of_libpq_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """``PG*`` where the DSN says nothing, the DSN where it does."""
    for variable, value in {"PGHOST": "env", "PGPORT": "6543", "PGDATABASE": "envdb", "PGUSER": "envuser"}.items():
        monkeypatch.setenv(variable, value)
    assert target("").name == "env:6543/envdb"
    assert target("postgresql://db:5433/shop").name == "db:5433/shop"
    monkeypatch.delenv("PGDATABASE")
    assert target("").name == "env:6543/envuser"
    assert target("user=app").name == "env:6543/app"


def test_arguments_for_psycopg2_are_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they came, the factories included; a bound on the connect is added."""
    calls = []
    monkeypatch.setattr(psycopg2, "connect", lambda *args, **kwargs: calls.append((args, kwargs)))
    factory = psycopg2.extras.RealDictCursor
    target("postgresql://db/shop", None, factory, application_name="till").connect(ConnectAttempt())
    assert calls == [
        (
            ("postgresql://db/shop", None, factory),
            {"application_name": "till", "connect_timeout": CONNECT_TIMEOUT},
        )
    ]


@pytest.mark.parametrize(
    ("dsn", "variable"),
    [
        ("host=db connect_timeout=3", None),
        ("postgresql://db/shop?connect_timeout=3", None),
        ("service=shop", None),
        ("host=db", "PGCONNECT_TIMEOUT"),
        ("host=db", "PGSERVICE"),
    ],
)
def test_a_connect_timeout_of_the_users_own_is_kept(
    monkeypatch: pytest.MonkeyPatch, dsn: str, variable: str | None
) -> None:
    """Ours stands only where neither DSN nor environment, nor a service that may, says otherwise."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(psycopg2, "connect", lambda *_args, **kwargs: calls.append(kwargs))
    if variable is not None:
        monkeypatch.setenv(variable, "3")
    target(dsn).connect(ConnectAttempt())
    assert calls == [{}]


def test_credentials_are_asked_for_each_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    """And merged over what was given."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(psycopg2, "connect", lambda *_args, **kwargs: calls.append(kwargs))
    passwords = iter(["first", "second"])
    rotating = ConnectTarget(("host=db connect_timeout=3",), {"password": "old"}, lambda: {"password": next(passwords)})
    rotating.connect(ConnectAttempt())
    rotating.connect(ConnectAttempt())
    assert [call["password"] for call in calls] == ["first", "second"]


def test_what_an_error_may_quote(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names, places and files of the arguments, and of what ``credentials`` gave last; no password."""
    monkeypatch.setenv("PGPASSWORD", "fromenv")
    monkeypatch.setattr(psycopg2, "connect", lambda *_args, **_kwargs: None)
    given = iter([{"user": "first", "password": "rotated"}, {"user": "second", "password": "rotated"}])
    parsed = ConnectTarget(
        ("host=db,/run/pg user=app dbname=shop password=from@url sslpassword=forkey",), {}, lambda: next(given)
    )
    parsed.connect()
    parsed.connect()
    assert {"db", "5432", "/run/pg/.s.PGSQL.5432", "shop", "app", "second"} <= parsed.public
    assert not {"from@url", "forkey", "fromenv", "rotated", "first"} & parsed.public


SECRET = "hunter2"

UNREADABLE = [
    (("host=db password=hunter2 nonsense",), {}),
    (("host=db password='hunter2",), {}),
    (("host=db passwrod=hunter2",), {}),
    (("hunter2",), {}),
    (("postgresql://app:hunter2@db/shop?sslmodee=x",), {}),
    (("postgresql://app:hunter2%zz@db/shop",), {}),
    (("postgresql://app:%zzhunter2@db/shop",), {}),
    (("postgresql://app:x@hunter2@db/shop",), {}),
    (("postgresql://app:x/hunter2@db/shop",), {}),
    (("postgresql://app:12/hunter2@db/shop",), {}),
    (("postgresql://app:hunter2/12@db/shop",), {}),
    (("mysql://app:hunter2@db/shop",), {}),
    (("postgresql://app:hunter2@[::1/shop",), {}),
    (("host=db password=hunter2\x00",), {}),
    (("host=db password=hunter2 port=hunter2",), {}),
    (("host=db password=hunter2 port=0",), {}),
    (("host=db password=hunter2 port=65536",), {}),
    (("host=db password=hunter2",), {"port": "5432hunter2"}),
    (("host=db password=hunter2",), {"passwrod": "hunter2"}),
    ((), {"host": "db", "passwrod": "hunter2"}),
    ((), {"dsn": 5, "password": "hunter2"}),
    ((b"host=db password=hunter2",), {}),
    (({"password": "hunter2"},), {}),
    (("host=db password=hunter2",), {"async_": True}),
    (("host=db password=hunter2",), {"async": 1}),
]


@pytest.mark.parametrize(("args", "kwargs"), UNREADABLE, ids=[str(n) for n in range(len(UNREADABLE))])
def test_an_unreadable_dsn_is_refused_without_showing_it(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """A ``ValueError`` of our own, at once; no part of the password in its text, its repr or its traceback."""
    with pytest.raises(ValueError, match=r"dsn|port|passwrod|async") as caught:
        ConnectionPool(1, 2, *args, open=False, observer=None, **kwargs)
    error = caught.value
    assert error.__suppress_context__ or error.__context__ is None
    shown = [str(error), repr(error), "".join(line for line in _printed(error))]
    assert not [text for text in shown if SECRET in text]


def test_a_further_argument_by_position_is_refused() -> None:
    """As psycopg2 refuses it, so that no option stands there by mistake."""
    with pytest.raises(TypeError) as caught:
        ConnectionPool(1, 2, "host=db password=hunter2", None, None, True, open=False)  # type: ignore[misc]
    assert SECRET not in str(caught.value)


def _printed(error: BaseException) -> list[str]:
    """Return the traceback as it would be printed, from the package's own frames inwards."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return traceback.format_exception(type(error), error, trace)


def test_an_unknown_keyword_is_named() -> None:
    """A misspelled option of the pool is found here too."""
    with pytest.raises(ValueError, match=r"^'max_wating' is no option of ConnectionPool and no connection parameter"):
        target("host=db", max_wating=5)


def test_the_port_that_is_refused_says_what_is_accepted() -> None:
    """Without the text that stood there, as it may be half a password."""
    with pytest.raises(ValueError, match="whole number of 1 to 65535"):
        target("host=db port=http")


def test_a_bad_port_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the variable's name, the value and what is accepted."""
    monkeypatch.setenv("PGPORT", "http")
    with pytest.raises(ValueError, match="PGPORT"):
        target("host=db")


def test_an_at_sign_elsewhere_is_no_password() -> None:
    """In the user, in options, in a database given by key and value."""
    assert target("postgresql://app%40corp:x@db/shop?application_name=a%40b").name == "db:5432/shop"
    assert target("host=db dbname=odd@name").namespace == "odd@name"
