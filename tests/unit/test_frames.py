"""The frames of other threads."""

from __future__ import annotations

import gc
import os
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from otel_pgpool.telemetry import stacks

if TYPE_CHECKING:
    from types import FrameType


def test_a_running_thread() -> None:
    """Its innermost frame; of one that has ended there is none, and the collector goes on."""
    frame = stacks.current_frame(threading.current_thread())
    assert frame is not None
    assert frame.f_code.co_name == "current_frame"
    ended = threading.Thread(target=int)
    ended.start()
    ended.join()
    assert stacks.current_frame(ended) is None
    assert gc.isenabled()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # that is the subject
def test_a_fork_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child of a fork during a read of the frames can read them too, and its garbage collector is on."""
    inside, forking = threading.Event(), threading.Event()
    real = sys._current_frames

    def slowly() -> dict[int, FrameType]:
        inside.set()
        assert forking.wait(10)
        return real()

    monkeypatch.setattr(sys, "_current_frames", slowly)
    looking = threading.Thread(target=stacks.current_frame, args=(threading.current_thread(),))
    looking.start()
    assert inside.wait(10)
    threading.Timer(0.05, forking.set).start()
    pid = os.fork()
    if pid == 0:
        forking.set()
        looked = threading.Thread(target=stacks.current_frame, args=(threading.current_thread(),), daemon=True)
        looked.start()
        looked.join(10)
        os._exit(0 if gc.isenabled() and not looked.is_alive() else 1)
    looking.join()
    assert os.waitpid(pid, 0)[1] == 0
