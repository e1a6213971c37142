"""The watch over deadlines: one thread at a time, and each that is told to end does."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Any, ClassVar

from otel_pgpool import _deadline
from otel_pgpool._deadline import Deadline, stop_watching
from otel_pgpool._wakeup import Wakeup

if TYPE_CHECKING:
    import pytest

FAR = 600.0
"""Seconds that nothing here waits for."""
PATIENCE = 10.0


class Conn:
    """What a deadline needs of a connection."""

    def __init__(self) -> None:
        self._ends = socket.socketpair()

    def fileno(self) -> int:
        return self._ends[0].fileno()

    def close(self) -> None:
        for end in self._ends:
            end.close()


class Drowsy(Wakeup):
    """Whoever waits first on one comes late, as a thread does that a busy machine does not run."""

    may_look = threading.Event()
    sleepers: ClassVar[list[threading.Thread]] = []

    def wait(self, seconds: float) -> bool:
        if not self.sleepers:
            self.sleepers.append(threading.current_thread())
            self.may_look.wait(PATIENCE)
        return super().wait(seconds)


def test_a_watch_that_sleeps_through_its_end_leaves_the_next_one_its_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told to end while another begins, it ends, and does not sleep on for as long as it had to."""
    conn: Any = Conn()
    stop_watching()
    monkeypatch.setattr(_deadline, "Wakeup", Drowsy)
    monkeypatch.setattr(_deadline, "_watch", _deadline._Watch())
    with Deadline(conn, FAR):
        first = _deadline._watch._thread
    ending = threading.Thread(target=stop_watching)
    ending.start()
    ending.join(PATIENCE)
    with Deadline(conn, FAR):
        second = _deadline._watch._thread
        assert second is not None
        assert second is not first
        Drowsy.may_look.set()
        assert first is not None
        first.join(PATIENCE)
        assert not first.is_alive()
    stop_watching()
    second.join(PATIENCE)
    assert not second.is_alive()
    conn.close()
