"""Hostile input: passwords in every place they come in by, and texts that are no names. Nothing secret is told."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import psycopg2
import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from psycopg2 import sql

from otel_pgpool import ConnectionPool, PoolTimeout
from tests.support.hostile import (
    INJECTED,
    MEGABYTE,
    RIGHT,
    WAYS,
    WRONG,
    assert_nothing_secret,
    by_url,
    logged,
    place,
    told_by,
)
from tests.support.receivers import HttpReceiver
from tests.support.telemetry import Signals, until

if TYPE_CHECKING:
    from otel_pgpool.demo.postgres import PostgresServer
    from tests.support.hostile import Entered, Way


pytestmark = pytest.mark.usefixtures("no_variables")


def shown_by(pool: ConnectionPool) -> str:
    """Return everything about a pool that a person may see."""
    stats = pool.stats()
    return "\n".join(map(str, (repr(pool), pool.name, pool.address, pool.namespace, stats, stats.as_dict())))


def failure_in_a_block(pool: ConnectionPool) -> str:
    """Return the text of the error; without pytest.raises, which would keep its cursor, and so the connection."""
    try:
        with pool.connection() as conn:
            conn.cursor().execute("select * from nowhere")
    except psycopg2.errors.UndefinedTable as error:
        return told_by(error)
    raise AssertionError("it did not fail")


@pytest.mark.parametrize("way", WAYS)
def test_in_service(signals: Signals, caplog: pytest.LogCaptureFixture, entered: Entered, way: Way) -> None:
    """A long hold, a timeout, a failed block and a dropped connection, with a password that is right."""
    caplog.set_level(logging.DEBUG)
    with signals.pool(1, 1, **entered(way, RIGHT), long_hold=0.02) as pool:
        with pool.connection():
            until(lambda: pool.stats().long_holds == 1)
            with pytest.raises(PoolTimeout) as timed_out:
                pool.getconn(timeout=0.02)
            texts = [shown_by(pool), *map(str, pool.holders())]
        texts.append(failure_in_a_block(pool))
        conn = pool.getconn(timeout=5)
        del conn
        until(lambda: pool.stats().discarded.get("reclaimed") == 1)
        assert signals.metrics()
        assert_nothing_secret(*texts, signals.everything(), logged(signals, caplog), told_by(timed_out.value))


OUT_OF_REACH: dict[str, dict[str, Any]] = {
    "password": {},
    "host": {"host": "no-such-host..invalid"},
    "database": {"dbname": "nowhere"},
    "sslmode": {"sslmode": "require"},
    "options": {"options": "-c no_such_setting=1"},
}


@pytest.mark.parametrize(
    ("way", "wrong"),
    [*[(way, "password") for way in WAYS], *[(by_url, wrong) for wrong in OUT_OF_REACH if wrong != "password"]],
)
def test_out_of_reach(
    signals: Signals, caplog: pytest.LogCaptureFixture, entered: Entered, way: Way, wrong: str
) -> None:
    """A wrong password, a host that cannot be one, a missing database, TLS that is not spoken, a bad setting."""
    caplog.set_level(logging.DEBUG)
    options = {**entered(way, WRONG if wrong == "password" else RIGHT), **OUT_OF_REACH[wrong]}
    with pytest.raises(psycopg2.OperationalError) as refused:
        ConnectionPool(1, 1, **options, observer=signals.telemetry())
    with signals.pool(0, 1, **options, max_retries=1) as pool:
        with pytest.raises(PoolTimeout) as timed_out:
            pool.getconn()
        assert isinstance(timed_out.value.__cause__, psycopg2.OperationalError)
        assert any(map(signals.logged, ("outage_started", "connect_refused")))
        errors = told_by(refused.value), told_by(timed_out.value)
        assert_nothing_secret(shown_by(pool), signals.everything(), logged(signals, caplog), *errors)


URL = f"postgresql://app:{quote(RIGHT, safe='')}@db/shop"
MISPLACED: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((URL, 1, 2), {}),
    ((1, URL), {}),
    ((1, 2, "host=db"), {"name": URL}),
    ((1, 2, "host=db"), {"name": f"password={RIGHT}"}),
    ((1, 2, "host=db"), {"timeout": URL}),
    ((1, 2, "host=db"), {"check": URL}),
    ((1, 2, "host=db"), {"configure": {"password": RIGHT}}),
    ((1, 2, "host=db"), {"credentials": {"password": RIGHT}}),
    ((1, 2, "host=db"), {"observer": URL}),
    ((1, 2, "host=db", URL), {}),
    ((1, 2, ["host=db", RIGHT]), {}),
    ((1, 2), {"dbname": URL}),
    ((1, 2), {"dbname": f"host=db password={RIGHT}"}),
    ((1, 2), {"user": URL}),
    ((1, 2), {"host": URL}),
    ((1, 2), {"service": URL}),
    ((1, 2), {"sslrootcert": URL}),
    ((1, 2), {"sslkey": f"password={RIGHT}"}),
    ((1, 2), {"port": RIGHT}),
    ((1, 2, f"host=db password={RIGHT}"), {}),
    ((1, 2, f"postgresql://app:{RIGHT}@db/shop"), {}),
    ((1, 2, URL.replace("postgresql", "mysql")), {}),
    ((1, 2, URL.replace("shop", "shop?sslmodee=x")), {}),
    ((1, 2, f"{URL}\0"), {}),
    ((1, 2, f"{URL}\udc80"), {}),
    ((1, 2, f"{URL}%ff"), {}),
    ((1, 2, URL.encode()), {}),
    ((1, 2, "host=db"), {"password": f"{RIGHT}\udc80"}),
    ((1, 2, "host=db"), {"password": f"{RIGHT}\0"}),
    ((1, 2, "host=db"), {"pasword": RIGHT}),
]


@pytest.mark.parametrize(("args", "options"), MISPLACED, ids=range(len(MISPLACED)))
def test_a_password_in_the_wrong_place(args: tuple[Any, ...], options: dict[str, Any]) -> None:
    """A DSN given as another argument, or one that cannot be read: refused, and not shown."""
    with pytest.raises(ValueError, match=r"must be|cannot be read|no option") as refused:
        ConnectionPool(*args, **{"observer": None, **options}, open=False)
    assert_nothing_secret(told_by(refused.value))


@pytest.mark.parametrize(
    ("variable", "value"),
    [("PGDATABASE", URL), ("PGUSER", f"password={RIGHT}"), ("PGHOST", URL), ("PGHOST", f"app:{RIGHT}@db")],
    ids=range(4),
)
def test_a_password_in_the_wrong_variable(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    """Refused like one in the DSN, where the DSN leaves the place to the variable, and named."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=variable) as refused:
        ConnectionPool(1, 2, "", observer=None, open=False)
    assert_nothing_secret(told_by(refused.value))
    with ConnectionPool(0, 2, "host=db user=app dbname=shop", observer=None, open=False) as pool:
        assert_nothing_secret(shown_by(pool))


def test_credentials_that_cannot_be_read(guarded: PostgresServer, signals: Signals) -> None:
    """A password that is no text comes out as the cause of a timeout, and is not shown."""
    with signals.pool(0, 1, **place(guarded), credentials=lambda: {"password": f"{RIGHT}\udc80"}) as pool:
        with pytest.raises(PoolTimeout) as timed_out:
            pool.getconn(timeout=0.1)
        assert_nothing_secret(told_by(timed_out.value), signals.everything())


# Texts that are no names


@pytest.mark.parametrize(
    "name",
    [INJECTED, "shop\0", "shop\x7f", "shop\udcff", "shop\u202e", "s" * MEGABYTE, b"shop\xff", "\t"],
    ids=["lines", "nul", "delete", "surrogate", "bidi", "megabyte", "bytes", "blank"],
)
def test_a_name_that_is_none(name: object) -> None:
    """Refused by a line that can be printed anywhere."""
    with pytest.raises(ValueError, match=r"^name must be a printable string") as refused:
        ConnectionPool(1, 2, "host=db", name=name, observer=None, open=False)  # type: ignore[arg-type]
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 200


OPTIONS: dict[str, tuple[object, ...]] = {
    "timeout": ("1\n", "9" * MEGABYTE, "1\udcff", b"\xff", 10**400, [1] * MEGABYTE),
    "max_waiting": ("1\x1b[31m", -(10**400), 1.5),
    "check": ("auto\n", "a" * MEGABYTE, "\udcff"),
    "a\nb": (1,),
    "a" * MEGABYTE: (1,),
    "a\udcff": (1,),
    "a\0": (1,),
}


@pytest.mark.parametrize(
    ("option", "value"),
    [(option, value) for option, values in OPTIONS.items() for value in values],
    ids=[f"{option[:11]!a}-{number}" for option, values in OPTIONS.items() for number, _ in enumerate(values)],
)
def test_an_option_that_is_none(option: str, value: object) -> None:
    """Refused by a short line that can be printed anywhere."""
    with pytest.raises(ValueError, match=r"must be|no option") as refused:
        ConnectionPool(1, 2, "host=db", **{option: value}, observer=None, open=False)  # type: ignore[arg-type]
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 300


def assert_one_line(signals: Signals) -> None:
    """Check that each record is one printable line."""
    assert signals.records.all
    for record in signals.records.all:
        message = record.record.getMessage()
        assert message.isprintable()
        assert len(message) < 10_000


def test_a_database_whose_name_would_forge_a_log(guarded: PostgresServer, signals: Signals) -> None:
    """It may be used; what is told of it is one printable line, which an OTLP endpoint takes."""
    admin = psycopg2.connect(guarded.dsn)
    admin.autocommit = True
    admin.cursor().execute(sql.SQL("create database {}").format(sql.Identifier(INJECTED)))
    admin.close()
    with HttpReceiver() as receiver:
        exporter = OTLPSpanExporter(f"{receiver.endpoint}/v1/traces")
        signals.tracer_provider.add_span_processor(SimpleSpanProcessor(exporter))
        options = place(guarded, dbname=INJECTED, password=RIGHT)
        with signals.pool(1, 1, **options, name=None, long_hold=0.02) as pool:
            with pool.connection() as conn:
                assert conn.info.dbname == INJECTED
                until(lambda: pool.stats().long_holds == 1)
                with pytest.raises(PoolTimeout) as timed_out:
                    pool.getconn(timeout=0.02)
            assert pool.name.isprintable()
            assert repr(pool).isprintable()
            assert "ERROR pool shop" in pool.namespace
            (checkout,) = [span for span in receiver.spans if span.attributes.get("otel_pgpool.outcome") == "committed"]
            assert checkout.attributes["db.namespace"] == pool.namespace
            assert checkout.attributes["db.client.connection.pool.name"] == pool.name
        assert all(line.isprintable() for line in str(timed_out.value).splitlines())
    assert_one_line(signals)


@pytest.mark.parametrize(
    "place_of",
    [
        {"PGDATABASE": b"shop\xff"},
        {"PGUSER": b"app\xff", "PGDATABASE": b""},
        {"PGDATABASE": f"no {INJECTED}".encode()},
        {"PGHOST": b"db\xff\n\x1b..invalid"},
        {"PGHOST": b"d" * (MEGABYTE // 16)},  # more the system does not let a program inherit
        {"dbname": "d" * MEGABYTE},
        {"host": "d" * MEGABYTE},
        {"host": INJECTED},
        {"host": "/" + "d" * MEGABYTE},
        {"application_name": "a" * MEGABYTE},
    ],
    ids=range(10),
)
def test_a_place_that_is_none(
    guarded: PostgresServer, signals: Signals, monkeypatch: pytest.MonkeyPatch, place_of: dict[str, Any]
) -> None:
    """A pool that cannot connect says so in its timeout, in short lines, and all that it tells can be exported."""
    options = place(guarded, password=RIGHT)
    for key, value in place_of.items():
        if key.startswith("PG"):
            monkeypatch.setitem(os.environb, key.encode(), value)
            options.pop({"PGDATABASE": "dbname", "PGUSER": "user", "PGHOST": "host"}[key], None)
        else:
            options[key] = value
    if "PGUSER" in place_of:
        options.pop("dbname", None)
    with HttpReceiver() as receiver:
        exporter = OTLPSpanExporter(f"{receiver.endpoint}/v1/traces")
        signals.tracer_provider.add_span_processor(SimpleSpanProcessor(exporter))
        with signals.pool(0, 1, **options, name=None, max_retries=1) as pool:
            with pytest.raises(PoolTimeout) as timed_out:
                pool.getconn()
            assert timed_out.value.retries > 0
            assert len(str(timed_out.value)) < 10_000
            assert repr(pool).isprintable()
        receiver.wait_for(lambda r: any(span.name == "pool.checkout" for span in r.spans))
        (span,) = [span for span in receiver.spans if span.name == "pool.checkout"]
        assert span.attributes["db.client.connection.pool.name"] == pool.name
        assert len(span.status_description) < 10_000
    assert_one_line(signals)
