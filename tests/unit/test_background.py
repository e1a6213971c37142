"""The thread that looks after something."""

from __future__ import annotations

import logging
import math
import threading
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pytest

from otel_pgpool.runtime import background
from otel_pgpool.runtime.background import BackgroundThread, ParkingThread
from tests.interleaving.scheduler import BREAKERS
from tests.support.processes import exit_code_of
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from types import FrameType

NAME = "otel_pgpool-test"


class Duties:
    def __init__(self) -> None:
        self.looked = threading.Semaphore(0)
        self.lives = True

    def run_once(self) -> float | None:
        self.looked.release()
        return math.inf if self.lives else None


class Notifier(Duties):
    """An observer that has a lock which a fork does not free, as the SDK's instruments have."""

    lock = threading.Lock()

    def run_once(self) -> float | None:
        with self.lock:
            self.looked.release()
            time.sleep(0.1)  # what a record takes
        return None


def running() -> int:
    return sum(thread.name == NAME for thread in threading.enumerate())


@pytest.mark.parametrize("turn", range(3))
def test_a_fork_waits_for_a_pass(turn: int) -> None:
    """Its child must not inherit a lock that the pass holds in telemetry: nobody would ever free it."""
    duties = Notifier()
    watch = BackgroundThread(duties, NAME)
    watch.wake()
    assert duties.looked.acquire(timeout=10)
    assert exit_code_of(lambda: Notifier.lock.acquire(timeout=0)) == 0
    watch.join(10)
    assert running() == 0


@pytest.mark.parametrize("started", [True, False], ids=["started", "not_started"])
def test_an_interrupted_start_leaves_one_thread(monkeypatch: pytest.MonkeyPatch, started: bool) -> None:
    """Ctrl-C, or gevent's Timeout, while it starts: the next wake finds the one that runs, or starts another."""
    start = threading.Thread.start

    def interrupted(thread: threading.Thread, *args: Any) -> None:
        monkeypatch.undo()
        if started:
            start(thread)
        raise KeyboardInterrupt

    duties = Duties()
    watch = BackgroundThread(duties, NAME)
    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        watch.wake()
    watch.join(0)
    watch.wake()
    assert duties.looked.acquire(timeout=10)
    assert running() == 1
    duties.lives = False
    watch.wake()
    watch.join(10)
    assert running() == 0


class Failing(Duties):
    def run_once(self) -> float | None:
        if self.lives:
            self.lives = False
            raise RuntimeError("s3cret of a failed pass")
        self.looked.release()
        return None


def test_a_pass_that_fails(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The record has the error's class and the places, neither its text nor source lines; the thread goes on."""
    monkeypatch.setattr(background, "AFTER_FAILURE", 0.0)
    duties = Failing()
    watch = BackgroundThread(duties, NAME)
    watch.wake()
    assert duties.looked.acquire(timeout=10)
    watch.join(10)
    (record,) = caplog.records
    text = logging.Formatter().format(record)
    assert "RuntimeError" in text
    assert f'File "{__file__}"' in text
    assert "s3cret" not in text
    assert "raise " not in text


class Parked(Duties):
    def __init__(self) -> None:
        super().__init__()
        self.parked = True


def test_a_parked_thread_ends_with_its_work() -> None:
    """Nothing of the thread keeps the object that does its work, even if that is also where checkouts read `parked`."""
    duties = Parked()
    watch = ParkingThread(duties, duties, NAME)
    watch.wake()
    assert not duties.parked
    assert duties.looked.acquire(timeout=10)
    del duties
    watch.join(10)
    assert running() == 0


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), KeyboardInterrupt()])
def test_a_thread_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """The next checkout tries again; an interrupt is raised, a failed start is not."""

    def fail(_thread: threading.Thread) -> None:
        raise error

    duties = Parked()
    watch = ParkingThread(duties, duties, NAME)
    monkeypatch.setattr(background, "start_thread", fail)
    with nullcontext() if isinstance(error, RuntimeError) else pytest.raises(KeyboardInterrupt):
        watch.wake()
    assert duties.parked


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # may end the thread
@pytest.mark.parametrize("place", range(1, 8))
def test_an_injected_error_at_each_jump(monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    """Where CPython raises what another thread injects: the thread goes on, or the next checkout starts a new one."""
    monkeypatch.setattr(background, "AFTER_FAILURE", 0.0)
    code, passed = BackgroundThread._run.__code__, 0

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal passed
        if frame.f_code is not code:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and code.co_code[frame.f_lasti] in BREAKERS:
            passed += 1
            if passed == place:
                raise KeyboardInterrupt
        return trace

    duties = Parked()
    thread = ParkingThread(duties, duties, NAME)

    def passes() -> bool:
        thread.wake() if duties.parked else thread.wakeup.set()
        return duties.looked.acquire(timeout=0.01) and passed >= place

    threading.settrace(trace)
    try:
        assert wait_until(passes)
    finally:
        threading.settrace(None)  # removes the function
    assert running() == 1
    duties.lives = False
    thread.wake()
    thread.join(10)
    assert running() == 0
