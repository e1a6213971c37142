"""Passwords with the places that they come in by, hostile names, and what must be in nothing that is told."""

from __future__ import annotations

import logging
import re
import secrets
from traceback import TracebackException
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from psycopg2 import extensions

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

    from otel_pgpool.demo.postgres import PostgresServer
    from tests.support.telemetry import Signals

    Way = Callable[[Path, pytest.MonkeyPatch, str], dict[str, Any]]
    Entered = Callable[[Way, str], dict[str, Any]]

FRAGMENTS = ("s3cr3t", "w0rd")
"""Letters and digits, which stay the same however a password is encoded or quoted."""
RIGHT = f"s3cr3t:'p@ss/ %\\w0rd{secrets.token_hex(16)}"
WRONG = f"{RIGHT}!"
INJECTED = "shop\nERROR pool shop: all is lost\x1b[31m\u2028\u202e"
MEGABYTE = 1 << 20


# Where a password comes in by


def by_url(folder: Path, monkeypatch: pytest.MonkeyPatch, password: str) -> dict[str, Any]:
    return {"dsn": f"postgresql://postgres:{quote(password, safe='')}@/postgres"}


def by_url_query(folder: Path, monkeypatch: pytest.MonkeyPatch, password: str) -> dict[str, Any]:
    return {"dsn": f"postgresql:///postgres?user=postgres&password={quote(password, safe='')}"}


def by_dsn(folder: Path, monkeypatch: pytest.MonkeyPatch, password: str) -> dict[str, Any]:
    return {"dsn": extensions.make_dsn(password=password)}


def by_keyword(folder: Path, monkeypatch: pytest.MonkeyPatch, password: str) -> dict[str, Any]:
    return {"password": password}


def by_credentials(folder: Path, monkeypatch: pytest.MonkeyPatch, password: str) -> dict[str, Any]:
    return {"credentials": lambda: {"password": password}}


def by_variable(folder: Path, monkeypatch: pytest.MonkeyPatch, password: str) -> dict[str, Any]:
    monkeypatch.setenv("PGPASSWORD", password)
    return {}


def passfile(folder: Path, password: str) -> str:
    file = folder / "passfile"
    file.touch(0o600)
    file.write_text("*:*:*:*:" + re.sub(r"([\\:])", r"\\\1", password) + "\n")
    return str(file)


def by_passfile(folder: Path, monkeypatch: pytest.MonkeyPatch, password: str) -> dict[str, Any]:
    return {"passfile": passfile(folder, password)}


def by_passfile_of_a_variable(folder: Path, monkeypatch: pytest.MonkeyPatch, password: str) -> dict[str, Any]:
    monkeypatch.setenv("PGPASSFILE", passfile(folder, password))
    return {}


def by_service(folder: Path, monkeypatch: pytest.MonkeyPatch, password: str) -> dict[str, Any]:
    file = folder / "services"
    file.write_text(f"[shop]\npassword={password}\n")
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    return {"service": "shop"}


def beside_sslpassword(folder: Path, monkeypatch: pytest.MonkeyPatch, password: str) -> dict[str, Any]:
    return {"password": password, "sslpassword": password}


def beside_options(folder: Path, monkeypatch: pytest.MonkeyPatch, password: str) -> dict[str, Any]:
    escaped = re.sub(r"([\\ ])", r"\\\1", password)
    return {"password": password, "options": f"-c shop.password={escaped}"}


WAYS = [
    by_url,
    by_url_query,
    by_dsn,
    by_keyword,
    by_credentials,
    by_variable,
    by_passfile,
    by_passfile_of_a_variable,
    by_service,
    beside_sslpassword,
    beside_options,
]


def place(server: PostgresServer, **changes: Any) -> dict[str, Any]:
    return {"host": "127.0.0.1", "port": server.port, "user": "postgres", "dbname": "postgres", **changes}


# What is told


def told_by(error: BaseException) -> str:
    """Its text, its repr, and the traceback that a program prints, with everything it was caused by."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    texts = [text for each in chain for text in (str(each), repr(each), repr(each.args), repr(vars(each)))]
    return "\n".join([*texts, *TracebackException.from_exception(error, capture_locals=False).format(chain=True)])


def assert_nothing_secret(*texts: str) -> None:
    for fragment in FRAGMENTS:
        for text in texts:
            assert fragment not in text


def logged(signals: Signals, caplog: pytest.LogCaptureFixture) -> str:
    """By whichever logger, as it would be written, tracebacks too."""
    records = [*caplog.records, *(record.record for record in signals.records.all)]
    return "\n".join(logging.Formatter().format(record) for record in records)
