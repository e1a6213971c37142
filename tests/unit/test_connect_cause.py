"""The cause of a failed connect, by what psycopg2 raised for it."""

from __future__ import annotations

import errno
import os

import psycopg2
import pytest
from psycopg2 import errors

from otel_pgpool.driver.connect_cause import ConnectCause, cause_of
from otel_pgpool.driver.deadline import NoAnswer

AT = 'connection to server at "127.0.0.1", port 5432 failed: '
FULL = f"{AT}FATAL:  sorry, too many clients already\n"
STARTING = f"{AT}FATAL:  the database system is starting up\n"
REFUSED = f"{AT}{os.strerror(errno.ECONNREFUSED)}\n\tIs the server running on that host and accepting connections?\n"


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (FULL, "FULL"),
        (f'{AT}FATAL:  too many connections for role "shop"\n', "FULL"),
        (f"{AT}FATAL:  remaining connection slots are reserved for roles with the SUPERUSER attribute\n", "FULL"),
        (f"{AT}FATAL:  no more connections allowed (max_client_conn)\n", "FULL"),
        (f"{AT}FATAL:  trop de clients\n", "ANSWER"),
        (f"{AT}FATAL:  could not fork new process for connection: Out of memory\n", "ANSWER"),
        (f'{AT}FATAL:  password authentication failed for user "the database system"\n', "REFUSAL"),
        (f"{AT}fe_sendauth: no password supplied\n", "REFUSAL"),
        (STARTING, "NOT_READY"),
        (f"{AT}FATAL:  terminating connection due to administrator command\n", "NOT_READY"),
        (f"{AT}FATAL:  pgbouncer cannot connect to server\n", "PROXY"),
        (f"{AT}FATAL:  server login has been failing, cached error: connect failed (server_login_retry)\n", "PROXY"),
        (REFUSED, "NO_LISTENER"),
        (f'connection to server on socket "/x/.s.PGSQL.1" failed: {os.strerror(errno.ENOENT)}\n', "NO_LISTENER"),
        (f'could not open certificate file "/x": {os.strerror(errno.ENOENT)}\n', None),
        (f"{AT}timeout expired\n", "NO_ANSWER"),
        ("connect did not end within 45 s", "NO_ANSWER"),
        (f"{AT}{os.strerror(errno.EHOSTUNREACH)}\n", "NO_ROUTE"),
        ('could not translate host name "db" to address: Name or service not known\n', "NO_HOST"),
        (f"{AT}server closed the connection unexpectedly\n\tThis probably means\n", "CUT"),
        (REFUSED + FULL, "FULL"),
        (STARTING + FULL, "FULL"),
        ("", None),
    ],
)
def test_by_its_text(text: str, cause: str | None) -> None:
    """A server that answers counts more than one that does not, and one that is up counts more than one that is not."""
    found = cause_of(psycopg2.OperationalError(text))
    assert (found and found.name) == cause


@pytest.mark.parametrize(("state", "cause"), [("53300", "FULL"), ("57P03", "NOT_READY"), ("28P01", "REFUSAL")])
def test_by_its_sqlstate(state: str, cause: str) -> None:
    """psycopg2 knows it if a statement on the new connection has failed."""
    error = errors.lookup(state)("x")
    error.__setstate__({"pgcode": state})
    found = cause_of(error)
    assert found is not None
    assert found.name == cause


def test_of_others() -> None:
    """What psycopg2 has not raised says nothing of the server."""
    assert cause_of(None) is None
    assert cause_of(ValueError(FULL)) is None


def test_no_answer() -> None:
    """The pool has cut the connection itself."""
    assert cause_of(NoAnswer.within(5.0)) is ConnectCause.NO_ANSWER


def test_up() -> None:
    """Open connections can work if the server has answered, and only then."""
    assert [cause.name for cause in ConnectCause if cause.is_up] == ["REFUSAL", "FULL", "ANSWER"]
