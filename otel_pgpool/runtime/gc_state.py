"""Detection of a garbage collector's run in this thread.

The garbage collector may close a generator anywhere, for example under a lock of this package, of a log handler or of
an SDK. The generator may end a block or release a connection. Such a release is therefore only noted, and the
maintenance thread completes it.

The callbacks here run only functions written in C. The garbage collector calls them with the phase, ``start`` or
``stop``, and a dictionary that is new in each phase. If a signal handler raised inside a callback written in Python,
the exception, for example a KeyboardInterrupt, would be lost.
"""

from __future__ import annotations

import gc
from functools import partial
from operator import methodcaller
from typing import Any

from otel_pgpool.runtime.gevent import load_again


class _Runs(set[str]):
    """A set with an item while the garbage collector runs.

    At each phase a callback reads the attribute of the phase's name: ``start`` adds the item, ``stop`` removes it.
    """

    start = property(methodcaller("add", "a run"))
    stop = property(set.clear)


COLLECTING = _Runs()
"""True while the garbage collector runs in any thread: a test that costs less than `is_collecting_here`."""

_everywhere: dict[str, object] = {}

_here: Any = load_again("_thread")._local()  # noqa: SLF001 - `threading.local` is this class, until gevent patches it
"""A local of the thread, not of the greenlet, because the garbage collector outlives the locals of gevent."""

gc.callbacks += [_everywhere.__setitem__, _here.__setattr__, partial(getattr, COLLECTING)]


def is_collecting_here() -> bool:
    """Return whether the garbage collector has called this function, directly or through others."""
    return bool(COLLECTING) and getattr(_here, "start", None) is _everywhere["start"]


def find_object(address: int) -> object:
    """Return the object with this ``id``; None if there is none.

    It is only found if the garbage collector knows its type, and does not run. This looks at every object.
    """
    return next((each for each in gc.get_objects() if id(each) == address), None)
