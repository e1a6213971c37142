"""Whether the garbage collector is at work in this thread.

It may close a generator, and so end a block or return a connection, anywhere: inside a lock of ours, of a log handler,
of an SDK. What it returns is therefore only noted down, and settled by the maintenance.

The notes that the collector's callbacks take are C functions alone, called with the phase (``start``, ``stop``) and a
dictionary that is new in each phase: a signal handler can interrupt a function written in Python, and what it raised
would be lost there, a Ctrl-C among it.
"""

from __future__ import annotations

import gc
from collections import OrderedDict
from typing import Any

from otel_pgpool._unpatched import load_again

_phases = OrderedDict.fromkeys(("start", "stop"))  # the present one last
_everywhere: dict[str, object] = {}


_here: Any = load_again("_thread")._local()
"""Of the thread, and not of a greenlet: the collector still works when gevent or eventlet have finalized theirs."""

gc.callbacks += [_phases.move_to_end, _everywhere.__setitem__, _here.__setattr__]  # type: ignore[list-item]  # any true object moves to the end


def is_collecting_here() -> bool:
    """Whether this call comes, by however many others, from the collector."""
    return next(reversed(_phases)) == "start" and getattr(_here, "start", None) is _everywhere["start"]
