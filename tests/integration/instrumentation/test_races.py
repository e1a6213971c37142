"""Threads that start, end and choose at the same time: each adapter is installed once, and is removed."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from psycopg2.pool import ThreadedConnectionPool

from otel_pgpool import PgPoolInstrumentor, instrumentation
from otel_pgpool.instrumentation import instrument_pool, uninstrument_pool
from otel_pgpool.instrumentation.adapters.psycopg2.install import Psycopg2Adapter
from otel_pgpool.instrumentation.installed_adapters import InstalledAdapters, _install_imported
from otel_pgpool.instrumentation.options import InstrumentationOptions
from otel_pgpool.instrumentation.session import InstrumentationSession
from otel_pgpool.instrumentation.tracker import TRACKER_ATTR, PoolTracker
from tests.support.adapters import FakeAdapter
from tests.support.instrumentation import instrumented, snapshot
from tests.support.waiting import PATIENCE, in_thread

if TYPE_CHECKING:
    from collections.abc import Iterator

MODULE = "psycopg2.pool"


class Paused:
    """An installation that waits half-way, after the methods were wrapped."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go_on, self.installs = threading.Event(), threading.Event(), 0
        original = Psycopg2Adapter.install

        def install(adapter: Psycopg2Adapter) -> None:
            self.installs += 1
            original(adapter)
            self.begun.set()
            assert self.go_on.wait(PATIENCE)

        monkeypatch.setattr(Psycopg2Adapter, "install", install)


@pytest.fixture
def paused(monkeypatch: pytest.MonkeyPatch) -> Iterator[Paused]:
    paused = Paused(monkeypatch)
    yield paused
    paused.go_on.set()


@pytest.fixture
def installed() -> Iterator[InstalledAdapters]:
    """Start the instrumentation of no kind, and let a hook install that of psycopg2."""
    with instrumented(pools=[]):
        assert instrumentation._installed is not None
        yield instrumentation._installed


def test_the_end_during_an_installation(paused: Paused, installed: InstalledAdapters) -> None:
    """An adapter that a post-import hook is installing at ``uninstrument()`` is removed too."""
    before = snapshot()
    hook = in_thread(_install_imported, weakref.ref(installed), MODULE, None)
    assert paused.begun.wait(PATIENCE)
    PgPoolInstrumentor().uninstrument()
    paused.go_on.set()
    hook.result(PATIENCE)
    assert snapshot() == before
    assert installed.installed == {}


def test_two_installations(paused: Paused, installed: InstalledAdapters, dsn: str) -> None:
    """``instrument_pool()`` during an installation by a hook installs nothing twice, and does not wait for the hook."""
    before = snapshot()
    pool = ThreadedConnectionPool(1, 1, dsn)
    hook = in_thread(_install_imported, weakref.ref(installed), MODULE, None)
    assert paused.begun.wait(PATIENCE)
    instrument_pool(pool)
    paused.go_on.set()
    hook.result(PATIENCE)
    assert paused.installs == 1
    pool.putconn(pool.getconn())
    tracker = vars(pool)[TRACKER_ATTR]
    assert tracker.handed_out == 1
    PgPoolInstrumentor().uninstrument()
    assert snapshot() == before
    pool.closeall()


def test_interrupted_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation that an interrupt ends can be repeated."""
    installed = InstalledAdapters({MODULE: instrumentation.ADAPTERS[MODULE]}, InstrumentationOptions.of(), ())
    before = snapshot()
    with monkeypatch.context() as patch:
        patch.setattr(Psycopg2Adapter, "_make_init_subclass", lambda _self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            installed.install(MODULE)
    assert snapshot() == before
    assert installed.install(MODULE) is not None
    installed.remove()
    assert snapshot() == before


@pytest.mark.parametrize("action", ["exclude", "end"])
def test_excluded_while_it_is_tracked(action: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool is asked about again under the session's lock, so that no excluded pool is tracked."""

    class Pool:
        pass

    pool = Pool()
    session = InstrumentationSession(InstrumentationOptions.of(environ={"OTEL_PGPOOL_SPANS": "off"}))

    def run_deferred() -> None:  # between the two questions
        monkeypatch.undo()
        session.exclude(pool) if action == "exclude" else session.end()

    monkeypatch.setattr(session.watch, "run_deferred", run_deferred)
    assert session.track(pool, FakeAdapter()) is None
    assert not isinstance(getattr(pool, TRACKER_ATTR, None), PoolTracker)
    session.end()
    assert TRACKER_ATTR not in vars(pool)


def test_many_choices(dsn: str) -> None:
    """Threads that choose a pool while others use it leave it as the last choice says, without an error."""
    pool: Any = ThreadedConnectionPool(1, 4, dsn)
    with instrumented(spans="off"):
        end = threading.Event()

        def use() -> None:
            while not end.is_set():
                pool.putconn(pool.getconn())

        users = [in_thread(use), in_thread(use)]
        for _ in range(50):
            uninstrument_pool(pool)
            instrument_pool(pool)
        uninstrument_pool(pool)
        end.set()
        for each in users:
            each.result(PATIENCE)
        assert not isinstance(vars(pool)[TRACKER_ATTR], PoolTracker)
    assert TRACKER_ATTR not in vars(pool)
    pool.closeall()
