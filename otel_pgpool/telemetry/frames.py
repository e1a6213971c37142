"""Where a thread is at work."""

from __future__ import annotations

import gc
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

_alone = threading.RLock()  # reentrant, for a signal handler


def frame_of(thread: threading.Thread) -> FrameType | None:
    """The innermost frame of a thread that runs.

    Without the collector: CPython 3.11 makes the frames under a lock of the interpreter's. A finalizer that lets go of
    the GIL there, as a psycopg2 connection's does, waits for ever for whoever starts a thread (gh-106883).
    """
    with _alone:  # else the first to be done would let the collector in on the other
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            return sys._current_frames().get(thread.ident or 0) if thread.is_alive() else None
        finally:
            if was_enabled:
                gc.enable()
