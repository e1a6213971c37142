"""Where a thread is at work."""

from __future__ import annotations

import gc
import sys
import threading
from typing import TYPE_CHECKING

from otel_pgpool import _fork

if TYPE_CHECKING:
    from types import FrameType

COLLECTS = sys.version_info[:2] == (3, 11)
"""Whether the collector may run while the frames are made."""

_alone = threading.RLock()  # reentrant, for a signal handler
_has_stopped_the_collector = False


def frame_of(thread: threading.Thread) -> FrameType | None:
    """The innermost frame of a thread that runs.

    Without the collector: CPython 3.11 makes the frames under a lock of the interpreter's. A finalizer that lets go of
    the GIL there, as a psycopg2 connection's does, waits for ever for whoever starts a thread (gh-106883).
    """
    if not thread.is_alive():
        return None
    global _has_stopped_the_collector  # noqa: PLW0603 - a forked child must know
    with _alone:  # else the first to be done would let the collector in on the other
        was_enabled = COLLECTS and gc.isenabled()
        try:
            if was_enabled:
                _has_stopped_the_collector = True
                gc.disable()
            return sys._current_frames().get(thread.ident or 0)
        finally:
            if was_enabled:
                gc.enable()
                _has_stopped_the_collector = False


def _after_fork() -> None:
    """Free a forked child of what another thread of its parent was doing in `frame_of`."""
    global _alone, _has_stopped_the_collector  # noqa: PLW0603 - that thread does not exist here
    _alone = threading.RLock()
    if _has_stopped_the_collector:
        gc.enable()
        _has_stopped_the_collector = False


_fork.register(_after_fork)
