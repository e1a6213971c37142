"""Whether what `credentials` gives may travel in clear: read from the parameters as libpq reads them."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg2 import extensions

from otel_pgpool.driver import exposure
from otel_pgpool.driver.exposure import NOT_IN_CLEAR, OVER_TLS, UNCHANGED, is_exposed, safe_options

FAR = "host=db.example.com"


@pytest.fixture(autouse=True)
def recent_libpq(no_variables: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extensions, "libpq_version", lambda: 160000)


def read(dsn: str) -> dict[str, Any]:
    return extensions.parse_dsn(dsn)


@pytest.mark.parametrize(
    "dsn",
    [
        FAR,
        f"{FAR} sslmode=disable",
        f"{FAR} sslmode=allow",
        f"{FAR} sslmode=prefer",
        f"{FAR} gssencmode=prefer",
        f"{FAR} sslrootcert=/etc/ca.pem",
        f"{FAR} service=shop sslmode=prefer",
        "postgresql://app@db/shop",
        "host=10.0.0.7",
        "host=127.example.com",
        "hostaddr=10.0.0.7",
        "host=localhost hostaddr=10.0.0.7",
        "host=localhost,db",
        "host=db,localhost",
        "host=/var/run/postgresql,10.0.0.7",
        "host=::2",
    ],
)
def test_exposed(dsn: str) -> None:
    """Another machine, one of several hosts even, and an sslmode below require."""
    assert is_exposed(read(dsn))


@pytest.mark.parametrize(
    "dsn",
    [
        "",
        "host=",
        "host=localhost",
        "host=localhost sslmode=disable",
        "host=127.0.0.1",
        "host=127.8.0.1",
        "host=::1",
        "postgresql://[::1]/shop",
        "host=/var/run/postgresql",
        "host=@postgresql",
        "host=localhost,/tmp,::1",
        "host=db.example.com hostaddr=127.0.0.1",
        f"{FAR} sslmode=require",
        f"{FAR} sslmode=verify-ca",
        f"{FAR} sslmode=verify-full",
        f"{FAR} gssencmode=require",
        f"{FAR} sslrootcert=system",
        f"{FAR} service=shop",
        "service=shop",
    ],
)
def test_not_exposed(dsn: str) -> None:
    """This machine, or encrypted for sure; and nothing is said where a service file may have settled it."""
    assert not is_exposed(read(dsn))


@pytest.mark.parametrize(
    ("dsn", "variables", "expected"),
    [
        (FAR, {"PGSSLMODE": "verify-full"}, False),
        (FAR, {"PGSSLMODE": "prefer"}, True),
        (f"{FAR} sslmode=prefer", {"PGSSLMODE": "require"}, True),
        (f"{FAR} sslmode=require", {"PGSSLMODE": "prefer"}, False),
        (FAR, {"PGGSSENCMODE": "require"}, False),
        (FAR, {"PGSSLROOTCERT": "system"}, False),
        (FAR, {"PGREQUIRESSL": "1"}, False),
        (FAR, {"PGREQUIRESSL": "1", "PGSSLMODE": "prefer"}, True),
        (FAR, {"PGSERVICE": "shop"}, False),
        ("", {"PGHOST": "db"}, True),
        ("host=localhost", {"PGHOST": "db"}, False),
        ("host=localhost", {"PGHOSTADDR": "10.0.0.7"}, True),
        ("", {"PGHOSTADDR": "127.0.0.1", "PGHOST": "db"}, False),
    ],
)
def test_variables(monkeypatch: pytest.MonkeyPatch, dsn: str, variables: dict[str, str], *, expected: bool) -> None:
    """They stand in for what the parameters leave out, as with libpq."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_exposed(read(dsn)) is expected


@pytest.mark.parametrize(
    ("dsn", "expected"),
    [
        (FAR, (NOT_IN_CLEAR, OVER_TLS)),
        ("host=127.0.0.1", (NOT_IN_CLEAR, OVER_TLS)),
        ("host=127.0.0.1 sslmode=allow", (NOT_IN_CLEAR, OVER_TLS)),
        ("host=127.0.0.1 sslmode=disable", (NOT_IN_CLEAR,)),
        ("host=/tmp,localhost", (NOT_IN_CLEAR, OVER_TLS)),
        ("host=/tmp", UNCHANGED),
        ("host=@postgresql", UNCHANGED),
        ("", UNCHANGED),
        (f"{FAR} sslmode=require", UNCHANGED),
        (f"{FAR} gssencmode=require", UNCHANGED),
        (f"{FAR} require_auth=password", UNCHANGED),
        (f"{FAR} require_auth=''", UNCHANGED),
        (f"{FAR} service=shop", UNCHANGED),
        (f"{FAR} service=shop sslmode=prefer", UNCHANGED),
    ],
)
def test_ways(dsn: str, expected: object) -> None:
    """Nothing is added to what is safe, or what the program has decided; a Unix socket is safe."""
    assert safe_options(read(dsn)) == expected


def test_ways_of_the_environment_and_of_an_old_libpq(monkeypatch: pytest.MonkeyPatch) -> None:
    """PGREQUIREAUTH is the program's own choice; before libpq 16 there is none."""
    monkeypatch.setenv("PGREQUIREAUTH", "scram-sha-256,password")
    assert safe_options(read(FAR)) == UNCHANGED
    monkeypatch.delenv("PGREQUIREAUTH")
    assert safe_options(read(FAR)) != UNCHANGED
    monkeypatch.setattr(exposure.extensions, "libpq_version", lambda: 150000)
    assert safe_options(read(FAR)) == UNCHANGED
