"""A bound on blocking calls: kept where threads and descriptors run short, interrupts come, and threads come late."""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from otel_pgpool.driver.deadline import Deadline, shutdown_socket
from otel_pgpool.runtime import deadline as deadlines
from otel_pgpool.runtime.deadline import stop_watching
from otel_pgpool.runtime.wakeup import Wakeup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SOON = 0.2
FAR = 600.0
"""Seconds that nothing here waits for."""
PATIENCE = 10.0


class Conn:
    """What a deadline needs of a connection: a socket, whose peer says nothing."""

    def __init__(self) -> None:
        self.near, self.far = socket.socketpair()
        self.near.settimeout(PATIENCE)

    def fileno(self) -> int:
        return self.near.fileno()

    def ask(self) -> bytes:
        """Wait for an answer; nothing, when it is cut."""
        return self.near.recv(1)

    def close(self) -> None:
        self.near.close()
        self.far.close()


@pytest.fixture
def conn() -> Iterator[Any]:
    conn = Conn()
    yield conn
    conn.close()


@pytest.fixture(autouse=True)
def watch() -> Iterator[deadlines._Watch]:
    """One of its own for each test."""
    watch = deadlines._Watch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deadlines, "_watch", watch)
        yield watch
    watch.stop(1.0)


def is_cut(conn: Any) -> bool:
    """Whether a call that would block is cut, soon."""
    with Deadline(conn, SOON) as deadline:
        return conn.ask() == b"" and deadline.expired


def no_descriptor(_fd: int) -> NoReturn:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_a_call_is_cut(conn: Any) -> None:
    """Past its deadline it returns at once."""
    assert is_cut(conn)


def test_a_call_is_cut_where_no_descriptor_is_left(conn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """When it is due, the cut needs none."""
    with Deadline(conn, SOON) as deadline:
        monkeypatch.setattr(os, "dup", no_descriptor)
        assert conn.ask() == b""
    assert deadline.expired


def test_no_descriptor_is_left_when_it_begins(
    conn: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The call goes on without a deadline, and that is said; of a closed connection nothing is."""
    monkeypatch.setattr(os, "dup", no_descriptor)
    with Deadline(conn, SOON):
        pass
    assert "no file descriptor is left" in caplog.text
    caplog.clear()
    monkeypatch.undo()
    conn.close()
    with Deadline(conn, SOON):
        pass
    assert caplog.text == ""


def test_an_interrupt_before_the_thread_starts(watch: deadlines._Watch, conn: Any) -> None:
    """The next deadline starts another."""

    def interrupt(_thread: threading.Thread) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watch, "_start", interrupt)
        with pytest.raises(KeyboardInterrupt), Deadline(conn, FAR):
            pass
    assert is_cut(conn)


@pytest.mark.parametrize("began", [True, False])
def test_somebody_elses_start_that_fails(conn: Any, monkeypatch: pytest.MonkeyPatch, *, began: bool) -> None:
    """Who relies on a thread that another starts is watched, though that one is interrupted, or can start none."""
    other: Any = Conn()
    cut: list[bool] = []
    relies, entered = threading.Thread(target=lambda: cut.append(is_cut(conn))), threading.Event()

    def fail(thread: threading.Thread) -> None:
        monkeypatch.undo()
        if began:
            thread.start()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Conn, "ask", told(entered, Conn.ask))
            relies.start()
            assert entered.wait(PATIENCE)
        raise KeyboardInterrupt if began else RuntimeError("can't start new thread")

    monkeypatch.setattr(deadlines, "start_thread", fail)
    with pytest.raises(KeyboardInterrupt) if began else nullcontext(), Deadline(other, FAR):
        relies.join(PATIENCE)
    relies.join(PATIENCE)
    other.close()
    assert cut == [True]


def told(event: threading.Event, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function, and set an event when it was called."""

    def called(*args: Any) -> Any:
        event.set()
        return function(*args)

    return called


class Drowsy(Wakeup):
    """Its thread comes late from its sleep, as on a busy machine, when it may."""

    def __init__(self, asleep: threading.Event, may_wake: threading.Event) -> None:
        super().__init__()
        self._asleep, self._may_wake = asleep, may_wake

    def wait(self, seconds: float) -> bool:
        if not self._asleep.is_set():
            self._asleep.set()
            self._may_wake.wait(PATIENCE)
        return super().wait(seconds)


def test_a_watch_that_sleeps_through_its_end(conn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told to end while another begins, it ends: that one does not take its ring, nor it that one's."""
    asleep, may_wake = threading.Event(), threading.Event()
    monkeypatch.setattr(deadlines, "Wakeup", partial(Drowsy, asleep, may_wake))
    monkeypatch.setattr(deadlines, "_watch", deadlines._Watch())
    with Deadline(conn, FAR):
        assert asleep.wait(PATIENCE)
        first = deadlines._watch._thread
    stop_watching()
    with Deadline(conn, FAR):
        second = deadlines._watch._thread
        may_wake.set()
        assert first is not None
        first.join(PATIENCE)
        assert not first.is_alive()
    stop_watching()
    assert second is not None
    second.join(PATIENCE)
    assert not second.is_alive()


def test_a_descriptor_that_is_somebody_elses_by_now() -> None:
    """Where libpq closes its socket meanwhile, and the number goes to another file, that is left alone."""
    mine, other = socket.socketpair()

    class Reconnecting:
        numbers = iter([mine.fileno(), 99])

        def fileno(self) -> int:
            return next(self.numbers)

    shutdown_socket(Reconnecting())  # type: ignore[arg-type]  # all that is asked of it
    mine.sendall(b"alive")
    assert other.recv(5) == b"alive"
    mine.close()
    other.close()


def test_a_log_handler_that_raises_stops_no_call(conn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a descriptor the call goes on without a bound, whatever becomes of the warning."""

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise ValueError(record.getMessage())

    monkeypatch.setattr(os, "dup", refuse_descriptor)
    handler, logger = Broken(), logging.getLogger("otel_pgpool")
    logger.addHandler(handler)
    try:
        with Deadline(conn, FAR):
            done = True
    finally:
        logger.removeHandler(handler)
    assert done


def refuse_descriptor(_number: int) -> NoReturn:
    raise OSError(errno.EMFILE, "no descriptor")
