"""The alarm clock of the background threads, which finalizers ring."""

from __future__ import annotations

import math
import threading
import weakref
from typing import Any

import pytest

from otel_pgpool.runtime.wakeup import Deferred, Wakeup, acquire_within, start_thread
from tests.support.fakes import FakeConnection


def test_a_ring_ends_the_next_wait() -> None:
    """It is not lost when nobody waits at that moment."""
    wakeup = Wakeup()
    wakeup.set()
    assert wakeup.wait(math.inf) is True


def test_rings_do_not_add_up() -> None:
    """However often it rang, one wait is ended."""
    wakeup = Wakeup()
    wakeup.set()
    wakeup.set()
    assert wakeup.wait(0) is True
    assert wakeup.wait(0) is False


def test_a_weak_reference_may_ring() -> None:
    """As the callback of an object's end."""
    wakeup = Wakeup()
    conn = FakeConnection()
    ref = weakref.ref(conn, wakeup.set_on_collect)
    del conn
    assert ref() is None
    assert wakeup.wait(0) is True


def test_waiting_for_a_lock_without_time_does_not_wait() -> None:
    """Nought and less than nought take a free lock, or answer False."""
    lock = threading.Lock()
    assert acquire_within(lock, 0) is True
    assert acquire_within(lock, 0) is False
    assert acquire_within(lock, -5) is False


def test_waiting_for_a_lock_takes_any_time() -> None:
    """Times longer than the platform can count, infinity included, are accepted."""
    for seconds in (math.inf, 1e300, threading.TIMEOUT_MAX * 2):
        assert acquire_within(threading.Lock(), seconds) is True


def test_dropped_connections_gather_until_drained() -> None:
    """In the order in which they were dropped; the drain empties it, and each drop rings."""
    wakeup = Wakeup()
    dropped: Deferred[Any] = Deferred(wakeup)
    conns = [FakeConnection(), FakeConnection()]
    refs = [weakref.ref(conn, dropped.append) for conn in conns]
    while conns:
        del conns[0]
    assert list(dropped.drain()) == refs
    assert list(dropped.drain()) == []
    assert wakeup.wait(0) is True


class Interrupted(threading.Thread):
    """As CPython's own: an interrupt while it waits for the thread to begin is lost behind another error."""

    def start(self) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("release unlocked lock")


def test_an_interrupt_while_a_thread_starts_comes_out() -> None:
    """And is not taken for a lack of threads."""
    with pytest.raises(KeyboardInterrupt):
        start_thread(Interrupted())


class Refused(threading.Thread):
    """Where there are too many."""

    def start(self) -> None:
        raise RuntimeError("can't start new thread")


def test_a_lack_of_threads_comes_out_while_an_error_is_handled() -> None:
    """It is not taken for an interrupt, though the caller be handling one."""
    with pytest.raises(RuntimeError, match="can't start new thread"):
        start_thread(Refused())
    try:
        raise KeyboardInterrupt  # noqa: TRY301 - it is to be handled here
    except KeyboardInterrupt:
        with pytest.raises(RuntimeError, match="can't start new thread"):
            start_thread(Refused())
