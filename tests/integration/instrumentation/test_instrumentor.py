"""PgPoolInstrumentor: on, off and on again; how OpenTelemetry finds it; what it is told, nonsense included."""

from __future__ import annotations

import functools
import gc
import json
import logging
import os
import subprocess
import sys
import textwrap
import threading
import weakref
from contextlib import ExitStack
from importlib import import_module
from importlib.metadata import distribution, entry_points
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psycopg2
import psycopg2.pool
import pytest
from opentelemetry.instrumentation.auto_instrumentation import _load as loader
from opentelemetry.instrumentation.auto_instrumentation._load import _load_instrumentors
from opentelemetry.instrumentation.dependencies import get_dist_dependency_conflicts
from opentelemetry.instrumentation.distro import DefaultDistro
from psycopg2.pool import AbstractConnectionPool, PoolError, SimpleConnectionPool, ThreadedConnectionPool

import otel_pgpool
from otel_pgpool import PgPoolInstrumentor, instrumentation
from otel_pgpool.instrumentation import installed_adapters, requirements
from tests.support.database import ask
from tests.support.instrumentation import instrumented, lent, name_of, quietly, snapshot, tracker_of
from tests.support.telemetry import assert_exactly, status_of, until
from tests.support.waiting import PATIENCE, in_thread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.telemetry import Signals

ROOT = Path(__file__).parents[3]
VARIABLES = {
    "OTEL_PGPOOL_SPANS": "sometimes",
    "OTEL_PGPOOL_SLOW": "-1",
    "OTEL_PGPOOL_LONG_HOLD": "nan",
    "OTEL_PGPOOL_HISTOGRAMS": "wait_time, use",
    "OTEL_PGPOOL_WAIT_TIMEOUT": "a while",
}

Pool = Any


def errors(signals: Signals) -> list[str]:
    """Return the errors that the instrumentation logged, except for exhausted pools."""
    records = [each.record for each in signals.records.all if each.event is None]
    return [record.getMessage() for record in records if record.levelname == "ERROR"]


# On and off


def test_everything_is_restored(signals: Signals, dsn: str) -> None:
    """After `uninstrument()` each attribute of each class is the object that it was, and no pool has one of ours."""

    class Derived(ThreadedConnectionPool):
        def getconn(self, key: object = None) -> Any:
            return super().getconn(key)

        def _connect(self, key: object = None) -> Any:
            return super()._connect(key)  # type: ignore[misc]

    class Abstract(AbstractConnectionPool):
        pass

    before = snapshot()
    own = [dict(vars(cls)) for cls in (Derived, Abstract)]
    connect, modules = psycopg2.connect, dict(vars(psycopg2.pool))
    pools = [cls(1, 1, dsn) for cls in (SimpleConnectionPool, ThreadedConnectionPool, Derived, Abstract)]
    attributes = [vars(pool).keys() for pool in pools]
    for _ in range(2):
        with instrumented(signals):
            assert snapshot() != before
            assert [dict(vars(cls)) for cls in (Derived, Abstract)] != own
            for pool in pools[:3]:
                pool.putconn(pool.getconn())
        assert snapshot() == before
        assert [dict(vars(cls)) for cls in (Derived, Abstract)] == own
        assert (psycopg2.connect, dict(vars(psycopg2.pool))) == (connect, modules)
        assert [vars(pool).keys() for pool in pools] == attributes
    assert len(signals.named("pool.checkout")) == 6
    for pool in pools[:3]:
        pool.putconn(pool.getconn())
    assert len(signals.named("pool.checkout")) == 6


def test_class_made_while_the_hook_was_on(signals: Signals, dsn: str) -> None:
    """Its own methods are its own again, and one made afterwards is not hooked."""
    with instrumented(signals):

        class During(ThreadedConnectionPool):
            def getconn(self, key: object = None) -> Any:
                return super().getconn(key)

        assert hasattr(During.getconn, "__wrapped__")
        assert During.__init_subclass__ is not object.__init_subclass__
    assert not hasattr(During.getconn, "__wrapped__")

    class After(ThreadedConnectionPool):
        def getconn(self, key: object = None) -> Any:
            return super().getconn(key)

    assert not hasattr(After.getconn, "__wrapped__")


@pytest.mark.parametrize("quiet", [False, True])
def test_checkouts_that_are_out(signals: Signals, dsn: str, quiet: bool) -> None:
    """They end with the instrumentation, and are given back as to a pool that never knew of it."""
    with instrumented(
        None if quiet else signals, long_hold=None, **({"spans": "off"} if quiet else {})
    ) as instrumentor:
        pool = ThreadedConnectionPool(2, 2, dsn)
        first, second = pool.getconn(), pool.getconn("key")
        instrumentor.uninstrument()
        if not quiet:
            assert len(signals.named("pool.checkout")) == 2
            for span in signals.named("pool.checkout"):
                assert_exactly(span.attributes, lent(dsn))
                assert status_of(span) == ("UNSET", None)
        assert "db.client.connection.max" not in signals.metrics()
        pool.putconn(first)
        pool.putconn(second, "key")
        assert (len(pool._pool), len(pool._used)) == (2, 0)
        assert len(signals.named("pool.checkout")) == (0 if quiet else 2)


def test_again_with_other_options(signals: Signals, dsn: str) -> None:
    """Each time the instrumentation begins afresh: other options, the same names, whose totals go on."""
    pool = ThreadedConnectionPool(1, 1, dsn)
    with instrumented(signals, long_hold=None):
        pool.putconn(pool.getconn())
    with instrumented(signals, spans="off"):
        pool.putconn(pool.getconn())
        assert signals.value("otel_pgpool.checkouts", "idle", pool_name=name_of(dsn)) == 2
        assert tracker_of(pool).handed_out == 1
    with instrumented(signals, long_hold=None):
        pool.putconn(pool.getconn())
    for span in signals.named("pool.checkout"):
        assert_exactly(span.attributes, lent(dsn))
    assert len(signals.named("pool.checkout")) == 2


def test_twice_is_once(signals: Signals, dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    """A second `instrument()`, of the same object or a new one, only warns; so does a second `uninstrument()`."""
    before = snapshot()
    with instrumented(signals):
        PgPoolInstrumentor().instrument(tracer_provider=signals.tracer_provider)
        pool = ThreadedConnectionPool(1, 1, dsn)
        pool.putconn(pool.getconn())
        assert len(signals.named("pool.checkout")) == 1
    PgPoolInstrumentor().uninstrument()
    assert snapshot() == before
    assert [record.levelname for record in caplog.records if "Attempting" in record.message] == ["WARNING"] * 2
    signals.complaints.all.clear()


def test_unknown_option(signals: Signals, caplog: pytest.LogCaptureFixture) -> None:
    """A misspelt option is a warning that names the options; what other instrumentors take is none."""
    with instrumented(signals, longhold=3, logger_provider=None):
        pass
    (record,) = [record for record in caplog.records if "has no option" in record.message]
    assert record.levelname == "WARNING"
    assert "'longhold'" in record.message
    assert "long_hold" in record.message


def test_methods_taken_while_the_hook_was_on(signals: Signals, dsn: str) -> None:
    """A program that keeps `pool.getconn` itself goes on with it after `uninstrument()`, and is not seen any more."""
    pool = ThreadedConnectionPool(1, 1, dsn)

    class Derived(ThreadedConnectionPool):
        def getconn(self, key: object = None) -> Any:
            return super().getconn(key)

    derived = Derived(1, 1, dsn)
    with instrumented(signals):
        kept = [(pool.getconn, pool.putconn), (derived.getconn, derived.putconn)]
        closeall = pool.closeall
    assert len(signals.named("pool.checkout")) == 0
    for getconn, putconn in kept:
        putconn(getconn())
    assert len(signals.named("pool.checkout")) == 0
    with instrumented(signals):
        for getconn, putconn in kept:
            conn = getconn()
            assert ask(conn, "select 1") == 1
            putconn(conn)
        assert len(signals.named("pool.checkout")) == 0
        pool.putconn(pool.getconn())
        derived.putconn(derived.getconn())  # of the kept one the call below was seen, and ends now
        assert len(signals.named("pool.checkout")) == 3
        assert signals.live() == []
    closeall()
    assert pool.closed


@pytest.mark.parametrize("quiet", [False, True])
def test_wrapped_by_somebody_else(signals: Signals, dsn: str, monkeypatch: pytest.MonkeyPatch, quiet: bool) -> None:
    """What another library has put around our wrappers stays, and leads through them to the stock methods."""
    calls = []

    def around(original: Any) -> Any:
        @functools.wraps(original)
        def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append(original.__name__)
            return original(self, *args, **kwargs)

        return wrapper

    stock = {name: getattr(ThreadedConnectionPool, name) for name in ("getconn", "putconn")}
    try:
        with instrumented(None if quiet else signals, **({"spans": "off"} if quiet else {})):
            for name in stock:
                setattr(ThreadedConnectionPool, name, around(getattr(ThreadedConnectionPool, name)))
            pool = ThreadedConnectionPool(1, 1, dsn)
            pool.putconn(pool.getconn())
            assert sum(tracker_of(pool).stats().checkouts.values()) == 1
        pool.putconn(pool.getconn())
        assert "_otel_pgpool" not in vars(AbstractConnectionPool)
        with instrumented(None if quiet else signals, **({"spans": "off"} if quiet else {})):
            pool.putconn(pool.getconn(), close=True)
            stats = tracker_of(pool).stats()
            assert sum(stats.checkouts.values()) == 1
            assert stats.discarded == {"returned_closed": 1}
        assert calls == ["getconn", "putconn"] * 3
        assert len(signals.named("pool.checkout")) == (0 if quiet else 2)
    finally:
        for name, method in stock.items():
            setattr(ThreadedConnectionPool, name, method)


@pytest.mark.parametrize("quiet", [False, True])
def test_while_threads_work(signals: Signals, dsn: str, quiet: bool) -> None:
    """The instrumentation comes and goes under the hands of threads: no checkout fails, no connection is lost."""
    pool = ThreadedConnectionPool(4, 4, dsn)
    stop = threading.Event()
    done = [0] * 4

    def work(number: int) -> None:
        while not stop.is_set():
            conn = pool.getconn()
            pool.putconn(conn)
            done[number] += 1

    futures = [in_thread(work, number) for number in range(4)]
    until(lambda: all(done))
    for _ in range(10):
        with quietly() if quiet else instrumented(signals):
            enough = len(signals.spans.ended) + 5
            until(lambda enough=enough: quiet or len(signals.spans.ended) > enough)
    stop.set()
    for future in futures:
        future.result(PATIENCE)
    assert (len(pool._pool), len(pool._used)) == (4, 0)
    assert signals.live() == []
    assert "_otel_pgpool" not in vars(pool)


def test_leaves_nothing(signals: Signals, dsn: str) -> None:
    """Nothing keeps the instrumentation once it is off, not even what waits for the import of another kind of pool."""
    with instrumented(signals):
        pool = ThreadedConnectionPool(1, 1, dsn)
        pool.putconn(pool.getconn())
        gone = [weakref.ref(tracker_of(pool)), weakref.ref(tracker_of(pool).watch)]
    until(lambda: gc.collect() >= 0 and [ref() for ref in gone] == [None, None])


def test_leaves_no_thread(signals: Signals, dsn: str) -> None:
    """The one thread that watches ends with the instrumentation; without a checkout there is none."""
    with instrumented(signals):
        pool = ThreadedConnectionPool(1, 1, dsn)
        assert not any(thread.name == "otel_pgpool-watch" for thread in threading.enumerate())
        pool.putconn(pool.getconn())
        assert [thread.daemon for thread in threading.enumerate() if thread.name == "otel_pgpool-watch"] == [True]
    until(lambda: not any(thread.name == "otel_pgpool-watch" for thread in threading.enumerate()))


def test_watch_rests(signals: Signals, dsn: str) -> None:
    """While nothing is out it sleeps, a pool that was closed with connections out included."""
    with instrumented(signals, long_hold=None):
        pool = ThreadedConnectionPool(1, 1, dsn)
        pool.getconn()
        watch = tracker_of(pool).watch
        until(lambda: signals.logged("utilization_critical"))
        pool.closeall()
        assert until(lambda: watch.parked)


# How it is reached


def test_public_name() -> None:
    """`otel_pgpool.PgPoolInstrumentor` is the instrumentor, one for the process."""
    assert otel_pgpool.PgPoolInstrumentor is instrumentation.PgPoolInstrumentor
    assert PgPoolInstrumentor() is PgPoolInstrumentor()
    assert "PgPoolInstrumentor" not in otel_pgpool.__all__


def load_all() -> None:
    """Do what `opentelemetry-instrument` does, with this package's entry point only."""
    _load_instrumentors(DefaultDistro())


@pytest.fixture
def only_ours(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from opentelemetry.instrumentation.auto_instrumentation import _load

    def ours(*, group: str) -> list[Any]:
        return [each for each in entry_points(group=group) if each.name == "otel_pgpool"]

    monkeypatch.setattr(_load, "entry_points", ours)
    yield
    if PgPoolInstrumentor().is_instrumented_by_opentelemetry:
        PgPoolInstrumentor().uninstrument()


def test_loaded(only_ours: None) -> None:
    """`opentelemetry-instrument` finds it as `otel_pgpool`, and loads it, its dependencies satisfied."""
    load_all()
    assert PgPoolInstrumentor().is_instrumented_by_opentelemetry


ALL = ["*"] if hasattr(loader, "SKIPPED_INSTRUMENTATIONS_WILDCARD") else []  # OpenTelemetry 1.36 does not know it


@pytest.mark.parametrize("disabled", ["otel_pgpool", "flask, otel_pgpool", *ALL])
def test_disabled(only_ours: None, monkeypatch: pytest.MonkeyPatch, disabled: str) -> None:
    """`OTEL_PYTHON_DISABLED_INSTRUMENTATIONS` keeps it off."""
    monkeypatch.setenv("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", disabled)
    before = snapshot()
    load_all()
    assert not PgPoolInstrumentor().is_instrumented_by_opentelemetry
    assert snapshot() == before


def test_dependencies() -> None:
    """The distribution declares the libraries of pools; those that are installed are the requirements."""
    ours = distribution("otel-pgpool")
    assert get_dist_dependency_conflicts(ours) is None
    declared = {line.partition(";")[0].strip().lower() for line in ours.requires or () if "instruments-any" in line}
    assert declared == {each.replace(" ", "").lower() for each in chain(*requirements.DISTRIBUTIONS.values())}
    required = PgPoolInstrumentor().instrumentation_dependencies()
    assert required == ("psycopg2-binary >= 2.9", "psycopg-pool >= 3.2", "SQLAlchemy >= 1.4", "asyncpg >= 0.29")


def run(script: str, **environ: str) -> dict[str, Any]:
    """Run a program in which every warning is an error; what it told on its last line."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        env={**inherited, "PYTHONPATH": str(ROOT), **environ},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED or name in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None

sys.meta_path.insert(0, Blocker())
"""


@pytest.mark.parametrize("missing", ["opentelemetry.instrumentation", "wrapt"])
def test_without_the_extra(missing: str) -> None:
    """The package imports without the extra `instrument`; asking for the instrumentor names it."""
    told = run(
        f"BLOCKED = {{{missing!r}}}\n"
        + BLOCKER
        + """
import json, otel_pgpool
from otel_pgpool import *
try:
    otel_pgpool.PgPoolInstrumentor
except ImportError as error:
    print(json.dumps({"type": type(error).__name__, "text": str(error), "name": error.name}))
"""
    )
    assert told["type"] == "ModuleNotFoundError"
    assert "otel-pgpool[instrument]" in told["text"]
    assert told["name"] == missing


def test_without_psycopg2() -> None:
    """Where psycopg2 is not installed the instrumentor is loaded, for other drivers' pools, and those behind it too."""
    told = run(
        "BLOCKED = {'psycopg2'}\n"
        + BLOCKER
        + """
import json
from opentelemetry.instrumentation.auto_instrumentation import _load
from opentelemetry.instrumentation.distro import DefaultDistro
from opentelemetry.util._importlib_metadata import entry_points

class Last:
    name = "last"
    dist = None
    loaded = False
    def load(self):
        def instrumentor():
            return self
        return instrumentor
    def instrument(self, **_options):
        Last.loaded = True

def ours(*, group):
    found = [each for each in entry_points(group=group) if each.name == "otel_pgpool"]
    return [*found, Last()] if found else []

class Finder(_load._EntryPointDistFinder):
    def dist_for(self, entry_point):
        return None

_load.entry_points = ours
_load._EntryPointDistFinder = Finder
_load.get_dist_dependency_conflicts = lambda _dist: None
_load._load_instrumentors(DefaultDistro())
from otel_pgpool import PgPoolInstrumentor
print(json.dumps({"ours": PgPoolInstrumentor().is_instrumented_by_opentelemetry, "last": Last.loaded}))
"""
    )
    assert told == {"ours": True, "last": True}


@pytest.mark.parametrize("on", [True, False])
def test_kind_that_is_imported_later(
    signals: Signals, dsn: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, on: bool
) -> None:
    """A kind of pool is instrumented when what it needs is imported, if the instrumentation is still on by then."""
    name = f"a_kind_of_pool_{'on' if on else 'off'}"
    (tmp_path / f"{name}.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(instrumentation, "ADAPTERS", {name: instrumentation.ADAPTERS["psycopg2.pool"]})
    before = snapshot()
    with instrumented(signals) as instrumentor:
        assert snapshot() == before
        if not on:
            instrumentor.uninstrument()
        import_module(name)
        pool = ThreadedConnectionPool(1, 1, dsn)
        pool.putconn(pool.getconn())
        assert len(signals.named("pool.checkout")) == (1 if on else 0)
    assert snapshot() == before


def test_hook_that_cannot_be_taken_off(signals: Signals, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is logged, and the others are taken off."""

    def broken(*_args: object) -> None:
        raise RuntimeError("broken")

    before = snapshot()
    with instrumented(signals):
        instrumentation._installed.installed["broken"] = SimpleNamespace(uninstall=broken)
        pool = ThreadedConnectionPool(1, 1, dsn)
    assert snapshot() == before
    assert "_otel_pgpool" not in vars(pool)
    assert len(errors(signals)) == 1


# What it is told


def test_options(signals: Signals, dsn: str) -> None:
    """Providers, span mode and threshold come from the arguments before the environment."""
    with instrumented(signals, spans="off", long_hold=7):
        pool = ThreadedConnectionPool(1, 1, dsn)
        assert (tracker_of(pool).long_hold, tracker_of(pool)._observer._config.spans) == (7.0, "off")


def test_environment(signals: Signals, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not given as an argument is read from the environment when the instrumentation comes on."""
    monkeypatch.setenv("OTEL_PGPOOL_SPANS", "slow")
    monkeypatch.setenv("OTEL_PGPOOL_SLOW", "0.5")
    monkeypatch.setenv("OTEL_PGPOOL_LONG_HOLD", "12")
    monkeypatch.setenv("OTEL_PGPOOL_HISTOGRAMS", "none")
    monkeypatch.setenv("OTEL_PGPOOL_WAIT_TIMEOUT", "3")
    with instrumented(signals):
        monkeypatch.setenv("OTEL_PGPOOL_SPANS", "off")
        pool = ThreadedConnectionPool(1, 1, dsn)
        config = tracker_of(pool)._observer._config
        assert (config.spans, config.slow, config.histograms) == ("slow", 0.5, frozenset())
        tracker = tracker_of(pool)
        assert (tracker.long_hold, tracker.wait_timeout) == (12.0, 3.0)
    assert errors(signals) == []


def test_bad_environment(signals: Signals, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each bad variable is logged once, with its name and value, and its default used; the program runs."""
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    with instrumented(signals):
        pools = [ThreadedConnectionPool(1, 1, dsn) for _ in range(3)]
        for pool in pools:
            pool.putconn(pool.getconn())
        tracker = tracker_of(pools[0])
        config = tracker._observer._config
        assert (config.spans, config.slow) == ("always", 0.1)
        assert config.histograms == {"wait_time", "use_time", "create_time"}
        assert (tracker.long_hold, tracker.queue) == (1.0, None)
        assert len(signals.named("pool.checkout")) == 3
    said = errors(signals)
    assert len(said) == len(VARIABLES)
    for name, value in VARIABLES.items():
        assert [text for text in said if name in text and value.rpartition(" ")[2] in text], name


@pytest.mark.parametrize("options", [{"spans": "all"}, {"long_hold": [1]}])
def test_bad_options(signals: Signals, dsn: str, options: dict[str, Any]) -> None:
    """A bad option is logged once, and its default used: an instrumentation stops no program."""
    with instrumented(signals, **options):
        pool = ThreadedConnectionPool(1, 1, dsn)
        pool.putconn(pool.getconn())
        assert_exactly(signals.checkout().attributes, lent(dsn))
        assert tracker_of(pool).long_hold == 1.0
    assert len(errors(signals)) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"tracer_provider": object()},
        {"meter_provider": object()},
        {"unknown": 1, "enabled": True},
        {"spans": object(), "long_hold": object()},
    ],
)
def test_instrument_never_raises(dsn: str, options: dict[str, Any]) -> None:
    """An exception here would stop every instrumentor that comes after."""
    before = snapshot()
    with instrumented(**options):
        pool = ThreadedConnectionPool(1, 1, dsn)
        pool.putconn(pool.getconn())
        assert (len(pool._pool), len(pool._used)) == (1, 0)
    assert snapshot() == before


@pytest.mark.parametrize(
    ("module", "where"),
    [
        (installed_adapters, "InstrumentationSession"),
        (instrumentation, "InstrumentationOptions"),
        (installed_adapters, "register_post_import_hook"),
        (installed_adapters, "resolve_name"),
    ],
)
def test_instrument_never_raises_of_itself(
    signals: Signals, dsn: str, monkeypatch: pytest.MonkeyPatch, module: Any, where: str
) -> None:
    """Whatever goes wrong inside is logged, and pools stay as they are."""

    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("broken")

        def __call__(self, *_args: object, **_kwargs: object) -> Any:
            raise RuntimeError("broken")

    before = snapshot()
    with ExitStack() as stack:
        monkeypatch.setattr(module, where, Broken())
        stack.enter_context(instrumented(signals))
        monkeypatch.undo()
        pool = ThreadedConnectionPool(1, 1, dsn)
        pool.putconn(pool.getconn())
    assert snapshot() == before
    assert [each for each in signals.records.all if each.record.levelname == "ERROR"]


def test_hook_that_fails_half_way(signals: Signals, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the classes cannot all be wrapped, none is left so."""
    from otel_pgpool.instrumentation.adapters.psycopg2.install import Psycopg2Adapter

    before = snapshot()

    def broken(*_args: object) -> Any:
        raise RuntimeError("broken")

    with ExitStack() as stack:
        monkeypatch.setattr(Psycopg2Adapter, "_make_init_subclass", broken)
        stack.enter_context(instrumented(signals))
        monkeypatch.undo()
        assert snapshot() == before
        pool = ThreadedConnectionPool(1, 1, dsn)
        pool.putconn(pool.getconn())
        assert signals.named("pool.checkout") == []
    assert snapshot() == before


def test_uninstrument_never_raises(signals: Signals, dsn: str) -> None:
    """Not even where a pool does not let go of what it was given."""

    class Sticky(ThreadedConnectionPool):
        def __delattr__(self, name: str) -> None:
            raise AttributeError(name)

    before = snapshot()
    with instrumented(signals):
        pools = [Sticky(1, 1, dsn), ThreadedConnectionPool(1, 1, dsn)]
        for pool in pools:
            pool.putconn(pool.getconn())
    assert snapshot() == before
    assert "_otel_pgpool" not in vars(pools[1])
    for pool in pools:
        pool.putconn(pool.getconn())
    with instrumented(signals):
        for pool in pools:
            pool.putconn(pool.getconn())
    assert len(signals.named("pool.checkout")) >= 3


def test_program_that_logs_nothing_is_told_nothing(dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    """An ordinary run writes no record above DEBUG."""
    with caplog.at_level(logging.INFO), instrumented(long_hold=None):
        pool = ThreadedConnectionPool(1, 2, dsn)
        pool.putconn(pool.getconn())
        pool.closeall()
        with pytest.raises(PoolError):
            pool.getconn()
    assert caplog.records == []
