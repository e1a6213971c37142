"""A forked child is noticed, however it was forked, and what the parent has left is renewed there once."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from otel_pgpool.runtime import fork as forking
from tests.support.processes import exit_code_of

if TYPE_CHECKING:
    from collections.abc import Callable


FORKS = [os.fork, ctypes.PyDLL(None).fork]


@pytest.fixture(params=[forking.make_marker, forking.PidMarker])
def marker(request: pytest.FixtureRequest) -> Any:
    made = request.param()
    assert not made
    made.value = 1
    return made


@pytest.mark.parametrize("fork", FORKS)
def test_a_marker(marker: Any, fork: Callable[[], int]) -> None:
    """It is set where it was set, and neither in a child nor, once it is set there, in a grandchild."""

    def set_again() -> bool:
        was_set = bool(marker)
        marker.value = 1
        return not was_set and bool(marker) and exit_code_of(lambda: not marker, fork) == 0

    assert exit_code_of(set_again, fork) == 0
    assert marker


@pytest.mark.parametrize("fork", FORKS)
def test_each_child_is_renewed_once(monkeypatch: pytest.MonkeyPatch, fork: Callable[[], int]) -> None:
    """By all callbacks, in their order, though one raises; a call from inside one, or a second one, does nothing."""
    called: list[str] = []

    def again() -> None:
        called.append("again")
        forking.renew()

    def wrong() -> None:
        called.append("wrong")
        raise ValueError("no")

    monkeypatch.setattr(forking, "_callbacks", [again, wrong, lambda: called.append("last")])

    def child() -> bool:
        if fork is os.fork and not forking.is_here:
            return False  # Python's own callbacks have run
        for _ in range(2):
            forking.renew()
        return called == ["again", "wrong", "last"] and bool(forking.is_here)

    assert exit_code_of(child, fork) == 0
    assert called == []


def test_threads_of_the_child_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several that come at once one renews, and none goes on before that is done."""
    inside, done = threading.Event(), threading.Event()
    called: list[str] = []

    def slow() -> None:
        called.append("slow")
        inside.set()
        assert done.wait(10)

    def child() -> bool:
        threads = [threading.Thread(target=forking.renew) for _ in range(3)]
        for thread in threads:
            thread.start()
        inside.wait(10)
        waits = all(thread.is_alive() for thread in threads)
        done.set()
        for thread in threads:
            thread.join(10)
        return waits and called == ["slow"]

    monkeypatch.setattr(forking, "_callbacks", [])
    monkeypatch.setattr(forking, "_interpreter", None)
    pid = os.fork()
    if pid == 0:  # as after a fork made in C, but with threads that start for certain
        code = 2
        try:
            monkeypatch.setattr(forking, "_callbacks", [slow])
            forking.is_here.value = 0
            forking._pending.clear()
            code = not child()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize("fork", FORKS)
def test_an_interrupt_leaves_nothing_undone(monkeypatch: pytest.MonkeyPatch, fork: Callable[[], int]) -> None:
    """What an interrupt has kept from being renewed is renewed by the next call."""
    called: list[str] = []

    def interrupted() -> None:
        called.append("interrupted")
        if len(called) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(forking, "_callbacks", [interrupted, lambda: called.append("last")])
    monkeypatch.setattr("sys.unraisablehook", lambda _unraisable: None)  # Python reports what its own callbacks raise

    def child() -> bool:
        for _ in range(2):
            with suppress(KeyboardInterrupt):
                forking.renew()
        return called == ["interrupted", "interrupted", "last"] and bool(forking.is_here)

    assert exit_code_of(child, fork) == 0


@pytest.mark.parametrize("fork", FORKS)
def test_a_foreign_callback_that_comes_first(fork: Callable[[], int]) -> None:
    """One that was registered before ours, and uses a pool, is called once: the interpreter is renewed once."""
    program = """
import ctypes, os, sys
calls = []
os.register_at_fork(after_in_child=lambda: (calls.append(1), forking.renew()))
from otel_pgpool.runtime import fork as forking
from tests.support.processes import exit_code_of
pid = os.fork() if sys.argv[1] == "python" else ctypes.PyDLL(None).fork()
if pid == 0:
    forking.renew()
    os._exit(len(calls) != 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    how = "python" if fork is os.fork else "c"
    done = subprocess.run([sys.executable, "-c", program, how], capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("nested", [False, True])
def test_a_fork_waits_for_a_connect(nested: bool) -> None:
    """Of another thread: its child must not inherit the locks that libpq holds meanwhile.

    One thread may connect while it notifies, as greenlets do; a fork waits until both are done.
    """
    began, done = threading.Event(), []

    def connect() -> None:
        with forking.keep_from_forking():
            with forking.keep_from_forking() if nested else nullcontext():
                pass
            began.set()
            time.sleep(0.1)  # what a connect, or a notification, takes
            done.append(True)

    connecting = threading.Thread(target=connect)
    connecting.start()
    assert began.wait(10)
    assert exit_code_of(lambda: bool(done)) == 0
    connecting.join()


def test_a_fork_waits_for_no_connect_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that hangs, or that the forking thread itself is in, stops it for a moment at most."""
    monkeypatch.setattr(forking, "FORK_WAIT", 0.05)
    began, end = threading.Event(), threading.Event()

    def connect() -> None:
        with forking.keep_from_forking():
            began.set()
            assert end.wait(10)

    connecting = threading.Thread(target=connect)
    connecting.start()
    assert began.wait(10)
    with forking.keep_from_forking():
        assert exit_code_of(lambda: True) == 0
    end.set()
    connecting.join()


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell which threads there are")
def test_a_fork_waits_for_the_end_of_a_thread_that_has_connected() -> None:
    """Its child must not inherit the lock under which OpenSSL frees what belongs to the thread."""
    ends = threading.Event()

    class Slow:
        def __del__(self) -> None:
            ends.set()
            time.sleep(0.1)  # what Python and the system have to do yet

    local = threading.local()

    def connect() -> None:
        local.kept = Slow()
        forking.delay_forks_until_this_thread_ends()

    thread = threading.Thread(target=connect)
    thread.start()
    assert ends.wait(10)
    number = thread.native_id
    assert number is not None
    task = Path(f"/proc/{os.getpid()}/task/{number}")
    assert exit_code_of(lambda: not task.exists()) == 0
    thread.join()


def test_a_connect_waits_for_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that begins while a fork is at work begins after it, and not when the fork stops waiting for others."""
    monkeypatch.setattr(forking, "FORK_WAIT", 0.05)
    monkeypatch.setattr(forking, "_python_forks", True)
    inside = threading.Event()

    def connect() -> None:
        with forking.keep_from_forking():
            inside.set()

    connecting = threading.Thread(target=connect)
    connecting.start()
    assert not inside.wait(0.2)
    forking._after_in_parent()
    assert inside.wait(10)
    connecting.join()
