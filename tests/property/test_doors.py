"""Texts that others wrote, on their way into spans, metrics, logs and errors: printable, bounded, without secrets."""

from __future__ import annotations

import itertools
import json
import re
import sys
import threading
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from psycopg2.pool import PoolError
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from otel_pgpool import ConnectionPool, PoolTimeout
from otel_pgpool.instrumentation.adapters.sqlalchemy.engine import engine_name, engine_target
from otel_pgpool.instrumentation.options import InstrumentationOptions
from otel_pgpool.instrumentation.session import InstrumentationSession
from otel_pgpool.runtime.text import LONGEST_TEXT
from otel_pgpool.telemetry.error_types import MOST_TYPES
from otel_pgpool.types import Outcome, PoolErrorType
from tests.support.adapters import FakeAdapter
from tests.support.fakes import FakeConnection
from tests.support.telemetry import Signals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SECRET = "w0rdXYZ"
CONTROLS = "\x1b]0;t\x07\x1b[2J\r\n\x00\x7f\x9b\u202e\u2028\ud800"
FORGED = f"x\nERROR pool shop: all is lost {CONTROLS}"
TEXTS = st.one_of(st.text(), st.text(st.characters(categories=("Cc", "Cf", "Cs", "Zl", "Zp"))), st.just(FORGED))
HUGE = st.builds(str.__mul__, st.sampled_from(["x", CONTROLS, "\n", '"', "://"]), st.just(100_000))
BESIDE = st.one_of(TEXTS, st.sampled_from(["::1%", "10.0.0.7", "fe80::1%eth0", "db", "5432", '"', "", "FATAL:  "]))
SECRETS = st.builds(lambda before, after: f"{before}{SECRET}{after}", BESIDE, BESIDE)
ANYTHING = st.one_of(TEXTS, HUGE)
FRAMES = [
    "{}",
    "FATAL:  {}",
    'connection to server at "{}", port 5432 failed: {}',
    'invalid dsn: missing "=" after "{}"',
    'FATAL:  password authentication failed for user "{}"',
    'FATAL:  invalid value for parameter "{}": "{}"\nDETAIL:  {}',
]
PLACE = "host=127.0.0.1 port=1 user=app dbname=shop connect_timeout=1"
LONGEST_STACK = 64 * 500
QUICK = settings(max_examples=10, deadline=None)
names = map("shop {}".format, itertools.count())


def texts_of(value: Any) -> Iterator[str]:
    """Every text in what JSON can say."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from (key, *texts_of(each))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from texts_of(each)


def told(signals: Signals, *others: object) -> list[str]:
    """Every text of the spans, the metrics and the records, and others."""
    found = [str(other) for other in others] + [repr(other) for other in others]
    for span in signals.spans.ended:
        found += texts_of(json.loads(span.to_json()))
    data = signals.reader.get_metrics_data()
    if data is not None:
        found += texts_of(json.loads(data.to_json()))
    for each in signals.records.all:
        found += [each.record.getMessage(), *texts_of(each.attributes), str(each.record.exc_text or "")]
    return found


def assert_fit(texts: list[str], secret: str = SECRET) -> None:
    """Check that a line which continues a record begins with two blanks, so that it cannot be taken for a record."""
    assert texts
    for text in texts:
        assert secret not in text, text[:300]
        assert len(text) <= LONGEST_STACK
        assert text.replace("\n", "").isprintable(), ascii(text[:300])
        assert "\nERROR" not in text


def refused_by(pool: ConnectionPool) -> PoolTimeout:
    with pytest.raises(PoolTimeout) as refused:
        pool.getconn(timeout=0.02)
    return refused.value


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_args: Any, **_kwargs: Any) -> Any:
        raise error

    return fail


def error_of(kind: type[Exception], frame: str, text: str) -> Exception:
    return kind(re.sub("{}", lambda _: text, frame))


KINDS = st.sampled_from([psycopg2.OperationalError, psycopg2.InterfaceError, ValueError])
ERRORS = st.builds(error_of, KINDS, st.sampled_from(FRAMES), SECRETS)


@QUICK
@given(error=ERRORS, option=st.sampled_from(["credentials", "connection_factory"]))
def test_errors_of_a_program(error: Exception, option: str) -> None:
    """Whatever a program's function raises while the pool connects is told by its class."""
    with Signals() as signals:
        pool = ConnectionPool(
            0, 1, PLACE, name=next(names), observer=signals.telemetry(), open=False, **{option: raising(error)}
        )
        refusal = refused_by(pool)
        pool.close(0)
        assert_fit(told(signals, refusal, pool, pool.stats()))


@QUICK
@given(error=ERRORS)
def test_errors_of_a_connect(error: Exception) -> None:
    """Of what a server, or somebody in its place, says at a connect nothing is told that it may have made up."""
    with Signals() as signals, pytest.MonkeyPatch.context() as patch:
        patch.setattr(psycopg2, "connect", raising(error))
        pool = ConnectionPool(0, 1, PLACE, name=next(names), observer=signals.telemetry(), open=False)
        refusal = refused_by(pool)
        pool.close(0)
        assert_fit(told(signals, refusal, pool))


@QUICK
@given(text=st.one_of(SECRETS, HUGE))
@example(text=f"{SECRET} {FORGED}")
def test_errors_of_an_observer(text: str) -> None:
    """An observer's error is told by its class, and by places."""

    class Broken:
        def attached(self, _pool: object) -> None:
            pass

        def __getattr__(self, _name: str) -> Any:
            return raising(RuntimeError(text))

    with Signals() as signals:
        pool = ConnectionPool(0, 1, PLACE, name=next(names), observer=Broken(), open=False)  # type: ignore[arg-type]
        refusal = refused_by(pool)
        pool.close(0)
        assert_fit(told(signals, refusal))


@QUICK
@given(thread=ANYTHING, function=ANYTHING, file=ANYTHING)
@example(thread=FORGED, function=FORGED, file=FORGED)
def test_names_of_threads_and_code(thread: str, function: str, file: str) -> None:
    """A thread, a function and a file may be named by anybody who makes them."""
    made: dict[str, Any] = {}
    exec(compile("def ask(pool): return pool.getconn(timeout=0.02)", "x", "exec"), made)  # noqa: S102 - to name it
    code = made["ask"].__code__
    named = {"co_name": function, "co_filename": file}
    if sys.version_info >= (3, 11):
        named["co_qualname"] = function
    made["ask"].__code__ = code.replace(**named)
    errors: list[BaseException] = []

    def run() -> None:
        with pytest.raises(PoolTimeout) as refused:
            made["ask"](pool)
        errors.append(refused.value)

    with Signals() as signals:
        pool = ConnectionPool(0, 1, PLACE, name=next(names), observer=signals.telemetry(), open=False)
        runner = threading.Thread(target=run, name=thread)
        runner.start()
        runner.join()
        pool.close(0)
        assert_fit(told(signals, *errors, *pool.holders()))


PIECES = st.lists(st.sampled_from([SECRET, *"@/?:#[],&=;% ", "w", "%40", "password="]), min_size=2, max_size=6)


@settings(max_examples=60, deadline=None)
@given(
    pieces=PIECES, place=st.sampled_from(["@127.0.0.1:1/shop", "@127.0.0.1/shop?connect_timeout=1", "@[::1]:1/shop"])
)
@example(pieces=["pa@", SECRET, "/W"], place="@db.invalid:5432/shop")
@example(pieces=["pa@", SECRET, ":1/W"], place="@db.invalid/shop")
@example(pieces=["pa@[", SECRET, "]:1/W"], place="@db.invalid/shop")
@example(pieces=["pa@", SECRET, ",W"], place="@db.invalid/shop")
def test_passwords_that_are_not_escaped(pieces: list[str], place: str) -> None:
    """No part of a password is told, however it tears a URL of SQLAlchemy's apart, but with an ``@`` before a ``?``."""
    password = "".join(pieces)
    url = f"postgresql+psycopg2://app:{password}{place}"
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        return
    if "?" in password and "@" in password.partition("?")[0]:  # SQLAlchemy itself has lost the rest then
        return
    if SECRET in str(parsed.username):  # a user's name is no secret
        return
    engine = create_engine(parsed)
    target, name = engine_target(engine), engine_name(engine)
    engine.dispose()
    assert_fit([target.address, target.namespace, name, *target.public, ""])


class Theirs:
    """A pool that is not ours."""


@QUICK
@given(name=ANYTHING, thread=ANYTHING, error=ERRORS, state=ANYTHING)
@example(name=FORGED, thread=FORGED, error=PoolError(FORGED), state=FORGED)
@example(name="shop", thread="t", error=PoolError(f"{SECRET} {FORGED}"), state="57P01")
@example(name="shop", thread="t", error=psycopg2.OperationalError(SECRET), state="08006")
def test_an_instrumented_pool(name: str, thread: str, error: Exception, state: str) -> None:
    """The name of a pool that is not ours, its threads, its refusals and its connects' errors."""
    if isinstance(error, psycopg2.OperationalError):
        restore: Any = error.__setstate__  # type: ignore[attr-defined]
        restore({"pgcode": state.replace("\0", "")})
    with Signals() as signals:
        session = InstrumentationSession(
            InstrumentationOptions.of(
                tracer_provider=signals.tracer_provider,
                meter_provider=signals.meter_provider,
                long_hold=1e-9,
                environ={},
            )
        )
        session.watch.parked = False  # no thread is started
        theirs = Theirs()
        tracker = session.track(theirs, FakeAdapter(), name=name)
        assert tracker is not None

        def run() -> None:
            tracker.connect_failed(0.0, error)
            frame = sys._getframe()
            tracker.failed(tracker.start((frame.f_code, frame.f_lasti)), error, PoolErrorType.TIMEOUT)
            tracker.failed(tracker.start((frame.f_code, frame.f_lasti)), error)
            held = tracker.start((frame.f_code, frame.f_lasti))
            tracker.acquired(held, FakeConnection())
            tracker.released(held, Outcome.DISCARDED, error)

        runner = threading.Thread(target=run, name=thread)
        runner.start()
        runner.join()
        texts = told(signals, tracker.stats())
        session.end()
        secrets = SECRET if SECRET not in thread else "\0"
        assert_fit(texts, secrets)
        assert max(map(len, texts)) <= 8 * LONGEST_TEXT


def test_classes_without_bound() -> None:
    """Error classes made on the fly do not make series without bound, and a timeout keeps its name."""
    with Signals() as signals:
        session = InstrumentationSession(
            InstrumentationOptions.of(
                tracer_provider=signals.tracer_provider, meter_provider=signals.meter_provider, environ={}
            )
        )
        session.watch.parked = False  # no thread is started
        theirs = Theirs()
        tracker = session.track(theirs, FakeAdapter(), name="theirs")
        assert tracker is not None
        frame = sys._getframe()
        for number in range(2 * MOST_TYPES):
            tracker.connect_failed(0.0, type(f"Error{number}", (Exception,), {})())
        tracker.failed(
            tracker.start((frame.f_code, frame.f_lasti)), PoolError("connection pool exhausted"), PoolErrorType.TIMEOUT
        )
        texts = told(signals)
        session.end()
    assert len({text for text in texts if re.fullmatch(r"Error\d+|_OTHER", text)}) == MOST_TYPES + 1
    assert "timeout" in texts
