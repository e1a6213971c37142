"""What is read of asyncpg's arguments and errors: targets without secrets, and texts that are known."""

from __future__ import annotations

import asyncio
import inspect
import socket
import ssl
from typing import Any

import asyncpg
import pytest
from asyncpg.connect_utils import _parse_connect_dsn_and_args

from otel_pgpool.errors import error_type
from otel_pgpool.instrumentation.adapters.asyncpg.install import AsyncpgAdapter
from otel_pgpool.instrumentation.adapters.asyncpg.target import target_of_arguments
from otel_pgpool.instrumentation.options import InstrumentationOptions
from otel_pgpool.instrumentation.session import InstrumentationSession


class Secret:
    """An object whose text the application fetches from elsewhere."""

    def __str__(self) -> str:
        raise AssertionError("asked for its text")

    __repr__ = __call__ = __str__


def called() -> str:
    raise AssertionError("called")


VARIABLES = ("PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGSERVICE", "PGHOSTADDR")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PGUSER", "ada")


ARGUMENTS = [
    ("postgresql://shop.example/orders", {}),
    ("postgres://u:p%40ss@shop.example:5433/orders", {}),
    ("postgresql://u@h1:5433,h2:5434/orders", {}),
    ("postgresql://h1,h2/orders?port=6000", {}),
    ("postgresql://u@h1,h2:5434/orders", {}),
    ("postgresql://%2Ftmp%2Fsocket/orders", {}),
    ("postgresql:///orders?host=/tmp/socket&port=5440", {}),
    ("postgresql://[::1]:5433/orders", {}),
    ("postgresql://h1/orders?user=u&dbname=other", {}),
    ("postgresql://h1?database=orders&user=u", {}),
    ("postgresql://h1:5433/orders", {"host": "h9", "user": "u"}),
    ("postgresql://h1:5433/orders", {"port": 7000, "database": "mine"}),
    (None, {"host": "shop.example", "port": "5433", "database": "orders", "password": called}),
    (None, {"host": ["h1", "h2"], "port": [5433, 5434], "database": "orders"}),
    (None, {"host": ("/tmp/a", "h2"), "database": "orders"}),
    (None, {"user": "u"}),
    ("", {"host": "h1"}),
    ("postgresql:///orders", {}),
]
OF_ENVIRONMENT: list[dict[str, str]] = [
    {},
    {"PGHOST": "env1,env2:7777", "PGDATABASE": "envdb"},
    {"PGPORT": "6543"},
    {"PGHOST": "/var/sockets", "PGPORT": "6543", "PGUSER": "envuser"},
]


@pytest.mark.parametrize("variables", OF_ENVIRONMENT)
@pytest.mark.parametrize(("dsn", "kwargs"), ARGUMENTS)
def test_targets(dsn: str | None, kwargs: dict[str, Any], variables: dict[str, str], monkeypatch: Any) -> None:
    """The hosts, ports and database are those that asyncpg itself finds in the arguments and the environment."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    given = {"host": None, "port": None, "user": None, "database": None, "password": None, **kwargs}
    others = inspect.signature(_parse_connect_dsn_and_args).parameters.keys() - {"dsn", *given}
    addresses, parameters, *_ = _parse_connect_dsn_and_args(dsn=dsn, **dict.fromkeys(others), **given)
    expected = [each if isinstance(each, tuple) else tuple(each.rsplit("/.s.PGSQL.", 1)) for each in addresses]
    if len(expected) == 5:  # the folders of a local server's socket, and localhost
        expected = expected[-1:]
    target = target_of_arguments([dsn], kwargs)
    assert target.address == ",".join(str(host) for host, _port in expected)
    ports = {int(port) for _host, port in expected}
    assert target.port == (ports.pop() if len(ports) == 1 else None)
    assert target.namespace == parameters.database
    assert "p@ss" not in target.name


@pytest.mark.parametrize(
    ("dsn", "kwargs"),
    [
        (Secret(), {}),
        (None, {"host": Secret()}),
        (None, {"host": ["h1", Secret()]}),
        (None, {"host": "h1", "database": Secret()}),
        ("postgresql://u:pa@ss@host/orders", {}),
        ("postgresql://u:pa/ss@host/orders", {}),
        ("postgresql://h1/orders?service=shop", {}),
        ("postgresql://h1/orders", {"service": "shop"}),
        ("postgresql://[::1/orders", {}),
        (None, {"host": "postgresql://u:secret@h/d"}),
    ],
)
def test_unknown_targets(dsn: Any, kwargs: dict[str, Any]) -> None:
    """Arguments that must not be read, or that may show a part of a password, make the target unknown."""
    target = target_of_arguments([dsn], kwargs)
    assert (target.address, target.namespace, target.name) == ("", "", "unknown")


def test_a_secret_beside_the_target() -> None:
    """What does not decide where the pool connects to is not read."""
    kwargs = {"host": "h1", "database": "orders", "password": Secret(), "ssl": Secret(), "server_settings": Secret()}
    assert target_of_arguments([None], kwargs).name == "h1:5432/orders"


# Errors


@pytest.fixture
def adapter() -> AsyncpgAdapter:
    return AsyncpgAdapter(InstrumentationSession(InstrumentationOptions.of(environ={})))


def from_server(cls: Any, message: str, **fields: str) -> Any:
    error = cls(message)
    vars(error).update(fields)
    return error


TARGET = target_of_arguments(["postgresql://ada@h1/orders"], {})


@pytest.mark.parametrize(
    ("error", "kind", "text", "is_refusal"),
    [
        (
            from_server(asyncpg.InvalidPasswordError, 'password authentication failed for user "ada"'),
            "28P01",
            'password authentication failed for user "ada"',
            True,
        ),
        (
            from_server(asyncpg.InvalidPasswordError, 'password authentication failed for user "secret"'),
            "28P01",
            'password authentication failed for user "..."',
            True,
        ),
        (asyncpg.TooManyConnectionsError("sorry, too many clients already"), "53300", None, False),
        (asyncpg.CannotConnectNowError("the database system is starting up"), "57P03", None, False),
        (
            from_server(
                asyncpg.UniqueViolationError,
                'duplicate key value violates unique constraint "orders_pkey"',
                constraint_name="orders_pkey",
                detail="Key (id)=(secret) already exists.",
            ),
            "23505",
            'duplicate key value violates unique constraint "orders_pkey"',
            True,
        ),
        (
            from_server(asyncpg.RaiseError, "the database system is shutting down", server_source_filename="pl_exec.c"),
            "P0001",
            "",
            True,
        ),
        (
            asyncpg.PostgresSyntaxError('syntax error at or near "secret"'),
            "42601",
            "",
            True,
        ),
        (asyncpg.InterfaceError("pool is closed"), "InterfaceError", None, False),
        (asyncpg.InterfaceError("value secret"), "InterfaceError", "", False),
        (
            ConnectionRefusedError(111, "Connect call failed ('10.0.0.1', 1)"),
            "ConnectionRefusedError",
            "Connection refused",
            False,
        ),
        (
            OSError("Multiple exceptions: [Errno 111] Connect call failed ('::1', 1), [Errno 113] no secret"),
            "OSError",
            "Connection refused; No route to host",
            False,
        ),
        (OSError("secret"), "OSError", "", False),
        (socket.gaierror(-2, "Name or service not known"), "gaierror", "Name or service not known", False),
        (socket.gaierror(-2, "secret"), "gaierror", "", False),
        (ssl.SSLError(1, "secret"), "SSLError", "", False),
        (asyncio.TimeoutError(), "TimeoutError", "timeout expired", False),
        (ValueError("secret"), "ValueError", "", True),
    ],
)
def test_errors(adapter: AsyncpgAdapter, error: Exception, kind: str, text: str | None, *, is_refusal: bool) -> None:
    """The type is the SQLSTATE or the class, the text what is known, and a refusal comes from a server that is up."""
    assert error_type(error) == kind
    assert adapter.error_text(error, TARGET) == (str(error) if text is None else text)
    assert adapter.is_refusal(error) == is_refusal


def test_an_error_that_raises(adapter: AsyncpgAdapter) -> None:
    """A class of the application may raise when it is asked for anything."""

    class HostileError(Exception):
        @property
        def sqlstate(self) -> str:
            raise RuntimeError

    assert error_type(HostileError()) == "HostileError"
    assert adapter.error_text(HostileError(), TARGET) == ""
