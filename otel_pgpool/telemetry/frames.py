"""Where a thread is at work."""

from __future__ import annotations

import gc
import os
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

COLLECTS = sys.version_info[:2] == (3, 11)
"""Whether the collector may run while the frames are made."""

_alone = threading.RLock()  # reentrant, for a signal handler
if hasattr(os, "register_at_fork"):  # a child must not find it held, nor the collector off
    os.register_at_fork(before=_alone.acquire, after_in_parent=_alone.release, after_in_child=_alone.release)


def frame_of(thread: threading.Thread) -> FrameType | None:
    """The innermost frame of a thread that runs.

    Without the collector: CPython 3.11 makes the frames under a lock of the interpreter's. A finalizer that lets go of
    the GIL there, as a psycopg2 connection's does, waits for ever for whoever starts a thread (gh-106883).
    """
    if not thread.is_alive():
        return None
    with _alone:  # else the first to be done would let the collector in on the other
        was_enabled = COLLECTS and gc.isenabled()
        try:
            if was_enabled:
                gc.disable()
            return sys._current_frames().get(thread.ident or 0)
        finally:
            if was_enabled:
                gc.enable()
