"""When the program's `reconnect_failed` is called: after failed attempts for long, once, and in a thread of its own."""

from __future__ import annotations

import math
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from otel_pgpool.pool import reconnect_failed
from otel_pgpool.pool.base import Common, Notifier
from otel_pgpool.pool.core import Core, State
from otel_pgpool.pool.reconnect_failed import ReconnectFailed
from tests.support.waiting import PATIENCE

POOL = SimpleNamespace(name="shop")


class Alarm:
    """A pool's alarm, and the calls of the program's function."""

    def __init__(self, timeout: float, error: BaseException | None = None) -> None:
        self.calls: list[object] = []
        self.threads: list[str] = []
        self._error = error
        nothing: Any = None
        config: Any = SimpleNamespace(reconnect_failed=self._called, reconnect_timeout=timeout)
        self.core = Core(0, 1, name="shop")
        self.core.open()
        notifier = Notifier(None)
        notifier.pool = lambda: POOL
        self.alarm = ReconnectFailed(Common(self.core, config, nothing, nothing, notifier, nothing))

    def _called(self, pool: object) -> None:
        self.calls.append(pool)
        self.threads.append(threading.current_thread().name)
        if self._error is not None:
            raise self._error

    def fail(self, began: float, ended: float) -> int:
        """Let an attempt fail; return how often the function was called until now."""
        self.alarm.failed(began, ended)
        for thread in threading.enumerate():
            if thread.name == "otel_pgpool-reconnect-failed":
                thread.join(PATIENCE)
        return len(self.calls)


def test_it_is_called_once_with_the_pool() -> None:
    """By the first failed attempt that ends so long after the first one began."""
    alarm = Alarm(60)
    assert [alarm.fail(at, at + 1) for at in (0, 30, 58, 59, 90, 900)] == [0, 0, 0, 1, 1, 1]
    assert alarm.calls == [POOL]
    assert alarm.threads == ["otel_pgpool-reconnect-failed"]


def test_a_connection_begins_the_time_anew() -> None:
    """It is called again in the next outage that lasts so long."""
    alarm = Alarm(60)
    assert [alarm.fail(0, 1), alarm.fail(50, 51)] == [0, 0]
    alarm.alarm.connected()
    assert [alarm.fail(70, 71), alarm.fail(120, 121), alarm.fail(130, 131)] == [0, 0, 1]
    alarm.alarm.connected()
    assert [alarm.fail(140, 141), alarm.fail(200, 201)] == [1, 2]


@pytest.mark.parametrize(("timeout", "calls"), [(0, 1), (10, 1), (10.5, 0), (math.inf, 0)])
def test_the_first_attempt_may_be_too_long(timeout: float, calls: int) -> None:
    """With 0 any failed attempt is."""
    assert Alarm(timeout).fail(0, 10) == calls


def test_attempts_at_the_same_time() -> None:
    """The one that began first counts, whichever ends first."""
    alarm = Alarm(10)
    assert [alarm.fail(5, 6), alarm.fail(0, 8), alarm.fail(9, 10)] == [0, 0, 1]


@pytest.mark.parametrize("error", [ValueError("hunter2"), SystemExit(1), KeyboardInterrupt()])
def test_an_error_is_logged_only(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    """By its class and its place, without its text."""
    assert Alarm(0, error).fail(0, 1) == 1
    [record] = caplog.records
    assert record.levelname == "ERROR"
    assert f"pool shop: reconnect_failed raised an error; the pool is not affected: {type(error).__name__}" in (
        record.getMessage()
    )
    assert "hunter2" not in record.getMessage()


def test_a_thread_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next failed attempt calls."""
    alarm = Alarm(0)

    def cannot_start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(reconnect_failed, "start_thread", cannot_start)
        assert alarm.fail(0, 1) == 0
    assert alarm.fail(2, 3) == 1


def test_a_closed_pool_calls_nothing() -> None:
    """An attempt of a pool that was closed meanwhile is of no interest."""
    alarm = Alarm(0)
    alarm.core.close()
    assert alarm.core.state is State.CLOSED
    assert alarm.fail(0, 1) == 0
