"""Which texts of libpq and of servers are told, and what of them is left out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest

from otel_pgpool.driver.error_text import LONGEST_KEPT, describe, without_traceback
from otel_pgpool.driver.messages import known
from otel_pgpool.driver.session import is_refusal
from otel_pgpool.driver.target import UNKNOWN, target_of_parameters
from otel_pgpool.errors import error_type
from otel_pgpool.runtime.text import LONGEST_TEXT

if TYPE_CHECKING:
    from collections.abc import Sequence

PUBLIC = {"db", "5432", "shop", "app", "/run/pg/.s.PGSQL.5432", "/etc/ca.crt"}
PLACE = 'connection to server at "db" (10.0.0.7), port 5432 failed: '
SECRET = "w0rdXYZ"


@pytest.mark.parametrize(
    "text",
    [
        PLACE + "Connection refused",
        PLACE + 'FATAL:  password authentication failed for user "app"',
        PLACE + 'FATAL:  no pg_hba.conf entry for host "10.1.1.1", user "app", database "shop", no encryption',
        PLACE + "FATAL:  sorry, too many clients already",
        PLACE + "server does not support SSL, but SSL was required",
        PLACE + "timeout expired",
        'connection to server on socket "/run/pg/.s.PGSQL.5432" failed: No such file or directory',
        'could not translate host name "db" to address: Name or service not known',
        'root certificate file "/etc/ca.crt" does not exist',
        "server login failed: FATAL:  the database system is starting up",
        "SSL error: certificate verify failed",
        "no answer within 5 s",
        "no answer within 0.333 s",
    ],
)
def test_known_texts(text: str) -> None:
    """A text of libpq's, PostgreSQL's or PgBouncer's is told as it is, where it quotes what is public."""
    assert known(text, PUBLIC) == text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"{PLACE}FATAL:  card 4111-1111", f"{PLACE}FATAL:  ..."),
        (f"{PLACE}{SECRET}", f"{PLACE}..."),
        (
            f'connection to server at "vault", port 8200 failed: FATAL:  role "{SECRET}" does not exist',
            'connection to server at "...", port ... failed: FATAL:  role "..." does not exist',
        ),
        (
            f"{PLACE}FATAL:  invalid command-line argument for server process: {SECRET}",
            f"{PLACE}FATAL:  invalid command-line argument for server process: ...",
        ),
        (
            f'{PLACE}FATAL:  invalid value for parameter "shop.token": "{SECRET}"',
            f'{PLACE}FATAL:  invalid value for parameter "...": "..."',
        ),
    ],
)
def test_what_is_not_public(text: str, told: str) -> None:
    """What a known text quotes of anything else is left out."""
    assert known(text, PUBLIC) == told


@pytest.mark.parametrize(
    "text",
    [
        f'invalid dsn: missing "=" after "{SECRET}" in connection info string',
        f"psycopg2.errors.{SECRET}",
        f"{SECRET}: Connection refused",
        f"Connection refused {SECRET}",
        "",
        "\n\n",
        "no answer within 4111 s",
        "no answer within 5 s, hunter2",
    ],
)
def test_unknown_texts(text: str) -> None:
    """Any other text is not told."""
    assert known(text, PUBLIC) == ""


@pytest.mark.parametrize(
    ("address", "is_told"),
    [
        ("10.0.0.7", True),
        ("::1", True),
        ("fe80::1%eth0", True),
        ("fe80::1%2", True),
        (f"fe80::1%{SECRET}", False),
        (f"::1%eth0 {SECRET}", False),
        (f"::1%{SECRET} words here", False),
    ],
)
def test_addresses(address: str, is_told: bool) -> None:
    """An address is told, with an interface as systems name it, and nothing else behind a percent sign."""
    text = f'FATAL:  password authentication failed for user "{address}"'
    assert (known(text, ()) == text) is is_told
    assert SECRET not in known(text, ())


def test_lines() -> None:
    """Lines of details, hints and contexts are not told; of several hosts each line is, once."""
    refused = f"{PLACE}Connection refused\n\tIs the server running on that host and accepting TCP/IP connections?\n"
    trigger = f'{PLACE}FATAL:  password authentication failed for user "app"\nDETAIL:  {SECRET}\nHINT:  {SECRET}\n'
    assert known(refused * 2 + trigger, PUBLIC).split("; ") == [
        f"{PLACE}Connection refused",
        f'{PLACE}FATAL:  password authentication failed for user "app"',
    ]


@pytest.mark.parametrize(
    "piece",
    ['connection to server at "', " (10.0.0.7), port ", "unsupported frontend protocol ", ": ", '"', "FATAL:  "],
)
def test_long_texts(piece: str) -> None:
    """A text of megabytes is looked at for its beginning alone."""
    assert len(known(piece * 1_000_000, PUBLIC)) < 10 * LONGEST_TEXT


class Raised(psycopg2.OperationalError):
    """As a server's error is."""

    diag: Any = None


def raised(state: str, text: str, source: str = "execMain.c", constraint: str | None = None) -> Raised:
    error = Raised(text)
    error.diag = SimpleNamespace(message_primary=text, source_file=source, constraint_name=constraint)
    restore: Any = error.__setstate__
    restore({"pgcode": state})
    return error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (raised("57P01", "terminating connection due to administrator command"), True),
        (raised("23505", 'duplicate key value violates unique constraint "note_key"', "x.c", "note_key"), True),
        (raised("57P01", f"terminating connection: {SECRET}"), False),
        (raised("57P01", "terminating connection due to administrator command", "pl_exec.c"), False),
        (raised("08006", f"{SECRET} of a remote server", "connection.c"), False),
        (ValueError("Connection refused"), False),
    ],
)
def test_errors_with_a_state(error: BaseException, told: bool) -> None:
    """Of a server's error its own known words are told; never those of a function, a remote server or a program."""
    assert describe(UNKNOWN, error) == (str(error) if told else "")


def test_a_constraint_of_another_name() -> None:
    """A name that the server does not give as that of the constraint is left out."""
    error = raised("23505", f'duplicate key value violates unique constraint "{SECRET}"', "x.c", "note_key")
    assert describe(UNKNOWN, error) == 'duplicate key value violates unique constraint "..."'


def test_a_constraint_with_control_characters() -> None:
    """A name is escaped."""
    name = "x\x1b[2J"
    error = raised("23505", f'duplicate key value violates unique constraint "{name}"', "x.c", name)
    assert describe(UNKNOWN, error).endswith('"x\\x1b[2J"')


@pytest.mark.parametrize("password", ["shop", "server", "authentication", "5432"])
def test_a_public_word_as_password(password: str) -> None:
    """No mask shows where a public word is the password."""
    target = target_of_parameters({"host": "shop", "user": "shop", "dbname": "shop", "password": password})
    text = 'connection to server at "shop", port 5432 failed: FATAL:  password authentication failed for user "shop"'
    assert describe(target, psycopg2.OperationalError(text)) == text


def test_a_state_that_is_none() -> None:
    """A server may send anything in the place of a SQLSTATE: then the class names the error."""
    states: Sequence[str] = ("\x1b[2J", "5" * 1_000_000, "57p01", "")
    assert {error_type(raised(state, "")) for state in states} == {"Raised"}
    assert error_type(raised("57P01", "")) == "57P01"


class Mute(psycopg2.OperationalError):
    """A program's class that cannot say its text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class PeculiarError(Exception):
    """One that is not made from a text."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


def test_an_error_that_cannot_say_its_text() -> None:
    """Its class is told, and nothing is raised."""
    assert (describe(UNKNOWN, Mute()), error_type(Mute())) == ("", "Mute")
    assert type(without_traceback(Mute())) is Mute
    assert not is_refusal(Mute())


def test_long_errors_of_a_program() -> None:
    """Of any error the beginning is kept; of one that cannot be made from a text its class too."""
    assert (type(without_traceback(ValueError("x" * 10**6))), len(str(without_traceback(ValueError("x" * 10**6))))) == (
        ValueError,
        LONGEST_TEXT,
    )
    assert str(without_traceback(PeculiarError("x" * 10**6, ""))).startswith("PeculiarError: xxx")


def test_what_is_kept_of_an_error() -> None:
    """Of an error with megabytes of text its beginning, its class and its SQLSTATE."""
    long, short = raised("57014", "x" * 2 * LONGEST_KEPT), raised("57014", "x")
    kept = without_traceback(long)
    assert (type(kept), error_type(kept), len(str(kept))) == (Raised, "57014", LONGEST_TEXT)
    assert without_traceback(short) is short
