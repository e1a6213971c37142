"""The frames of other threads."""

from __future__ import annotations

import gc
import sys
import threading
from typing import TYPE_CHECKING

from otel_pgpool.runtime import fork

if TYPE_CHECKING:
    from types import FrameType

GC_MAY_RUN = sys.version_info[:2] == (3, 11)
"""Whether the garbage collector may run while ``sys._current_frames`` creates frame objects."""

_lock = threading.RLock()  # reentrant, for a signal handler
_has_disabled_gc = False


def current_frame(thread: threading.Thread) -> FrameType | None:
    """Return the innermost frame of a thread, or None if the thread has ended.

    The garbage collector is switched off during the call. CPython 3.11 creates the frames under a lock of the
    interpreter. A finalizer that releases the GIL there, such as a psycopg2 connection's, would deadlock with a thread
    that starts another one (gh-106883).
    """
    if not thread.is_alive():
        return None
    global _has_disabled_gc  # noqa: PLW0603 - a forked child reads it
    with _lock:  # otherwise the first of two threads to finish would enable the garbage collector for the other
        was_enabled = GC_MAY_RUN and gc.isenabled()
        try:
            if was_enabled:
                _has_disabled_gc = True
                gc.disable()
            return sys._current_frames().get(thread.ident or 0)  # noqa: SLF001 - Python has no public function for the frames of other threads
        finally:
            if was_enabled:
                gc.enable()
                _has_disabled_gc = False


def _after_fork() -> None:
    """Undo, in a forked child, what another thread of the parent was doing in `current_frame`."""
    global _lock, _has_disabled_gc  # noqa: PLW0603 - that thread does not exist in the child
    _lock = threading.RLock()
    if _has_disabled_gc:
        gc.enable()
        _has_disabled_gc = False


fork.register(_after_fork)
