"""Third-party texts, as they are reported."""

from __future__ import annotations

import asyncpg
import pg8000
import psycopg
import pytest
from psycopg2 import errorcodes

from otel_pgpool.driver.reset import LONGEST_NOTICE, Notices
from otel_pgpool.errors import error_type
from otel_pgpool.runtime.text import (
    LONGEST_NAME,
    LONGEST_TEXT,
    MOST_NAMES,
    PrintableNames,
    file_of,
    function_of,
    may_hold_password,
    printable,
)
from otel_pgpool.telemetry.error_types import MOST_TYPES, OTHER, SQLSTATES, ErrorTypes


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("shop", "shop"),
        ("caf\u00e9 \u96ea", "caf\u00e9 \u96ea"),
        ("a\nb\tc", "a\\nb\\tc"),
        ("\x1b[2J\x07\x9b", "\\x1b[2J\\x07\\x9b"),
        ("\u202eevil\u2028", "\\u202eevil\\u2028"),
        ("\ud800", "\\ud800"),
    ],
)
def test_printable(text: str, told: str) -> None:
    """Characters that a terminal or a reader of lines obeys are escaped."""
    assert printable(text) == told


@pytest.mark.parametrize("text", ["x" * 10_000_000, "\x1b" * 10_000_000, "\U000e0001" * 1000])
def test_bounds(text: str) -> None:
    """A text is cut, before and after it is escaped."""
    assert len(printable(text)) <= LONGEST_TEXT
    assert printable(text).isprintable()


@pytest.mark.parametrize(
    ("text", "may"),
    [
        ("postgresql://app:secret@db/shop", True),
        ("shop&password=x", True),
        ("sslpassword : x", True),
        ("pwd=x", True),
        ('{"password": "x"}', True),
        ("http://host/", False),
        ("the password of the shop", False),
        (f"password{' ' * 5000}=x", True),
    ],
)
def test_may_hold_password(text: str, may: bool) -> None:
    """A connection string is recognized by its form."""
    assert may_hold_password(text) is may


@pytest.mark.parametrize("piece", ["://", "passw", "password ", "passw'", "@://"])
def test_guard_against_passwords_is_linear(piece: str) -> None:
    """A text of a megabyte is read once, not once for each of its characters."""
    may_hold_password(piece * (1_000_000 // len(piece)))


def test_names() -> None:
    """Names are made printable once; of many the latest are kept."""
    names = PrintableNames()
    assert (names["a\nb"], names["a"]) == ("a\\nb", "a")
    for number in range(3 * MOST_NAMES):
        names[f"thread {number}"]
    assert len(names) <= MOST_NAMES
    assert len(names["x" * 10_000]) == LONGEST_NAME
    assert "x" * 10_000 not in names  # a dead thread's name would stay


def test_code() -> None:
    """A program may give a file and a function any name; of a long path the end is reported."""
    long = f"/{'folder/' * 100}app.py"
    made: dict[str, object] = {}
    exec(compile("def f(): pass", f"x\nERROR\x1b{long}", "exec"), made)  # noqa: S102 - to give it a name
    code = made["f"].__code__  # type: ignore[attr-defined]
    assert file_of(code).endswith("folder/app.py")
    assert len(file_of(code)) <= LONGEST_NAME
    assert file_of(code.replace(co_filename="x\nERROR\x1b.py")) == "x\\nERROR\\x1b.py"
    assert len(function_of(code.replace(co_name="y" * 1000))) <= LONGEST_NAME


def test_error_types() -> None:
    """PostgreSQL's SQLSTATEs are reported as they are, and fifty others; the rest has one name."""
    types = ErrorTypes()
    assert {types.of(f"Error{number}") for number in range(1000)} == {*(f"Error{n}" for n in range(MOST_TYPES)), OTHER}
    assert (types.of("Error0"), types.of("Error999")) == ("Error0", OTHER)
    for expected in ("timeout", "closed", "too_many_requests", "23505", "OperationalError"):
        assert types.of(expected) == expected


def test_sqlstates() -> None:
    """All that drivers know are known, whichever driver is installed."""
    ours = {value for name, value in vars(errorcodes).items() if name.isupper() and len(value) == 5}
    theirs = {code for code in psycopg.errors._sqlcodes if len(code) == 5 and not code.isalpha()}
    assert ours | theirs <= SQLSTATES
    assert {len(state) for state in SQLSTATES} == {5}


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (psycopg.errors.QueryCanceled(), "57014"),
        (psycopg.OperationalError(), "OperationalError"),
        (asyncpg.exceptions.InvalidPasswordError(), "28P01"),
        (asyncpg.InterfaceError("no"), "InterfaceError"),
        (pg8000.exceptions.DatabaseError({"S": "FATAL", "C": "28P01", "M": "no"}), "28P01"),
        (pg8000.exceptions.InterfaceError("no"), "InterfaceError"),
        (type("Hostile", (Exception,), {"pgcode": property(lambda _self: 1 / 0)})(), "Hostile"),
        (type("Hostile", (Exception,), {"sqlstate": "x\nERROR"})(), "Hostile"),
        (type("Hostile", (Exception,), {"sqlstate": 57014})(), "Hostile"),
        (KeyError({"C": "28P01"}), "KeyError"),
    ],
)
def test_type_of_an_error(error: Exception, told: str) -> None:
    """The SQLSTATE of whichever driver's error, or else the name of its class."""
    assert error_type(error) == told


def test_notices() -> None:
    """Of a long notice the beginning is kept."""
    notices = Notices()
    notices.append("x" * 1_000_000)
    notices.append("short")
    assert [len(notice) for notice in notices] == [LONGEST_NOTICE, 5]
