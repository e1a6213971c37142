"""Detection of a garbage collector's run in this thread.

The garbage collector may close a generator anywhere, for example under a lock of this package, of a log handler or of
an SDK. The generator may end a block or release a connection. Such a release is therefore only noted, and the
maintenance thread completes it.

The callbacks here are functions written in C, which the garbage collector calls with the phase (``start``, ``stop``)
and a dictionary that is new in each phase. If a signal handler raised inside a callback written in Python, the
exception, for example a KeyboardInterrupt, would be lost.
"""

from __future__ import annotations

import gc
from collections import OrderedDict
from typing import Any

from otel_pgpool.runtime.gevent import load_again

_phases = OrderedDict.fromkeys(("start", "stop"))  # the present phase is the last key
_everywhere: dict[str, object] = {}


_here: Any = load_again("_thread")._local()  # noqa: SLF001 - `threading.local` is this class, until gevent patches it
"""A local of the thread, not of the greenlet, because the garbage collector outlives the locals of gevent."""

gc.callbacks += [_phases.move_to_end, _everywhere.__setitem__, _here.__setattr__]  # type: ignore[list-item]  # any true object moves to the end


def is_collecting_here() -> bool:
    """Return whether the garbage collector has called this function, directly or through others."""
    return next(reversed(_phases)) == "start" and getattr(_here, "start", None) is _everywhere["start"]
