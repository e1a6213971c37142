"""Whether the garbage collector is at work in this thread.

It may close a generator, and so end a block or return a connection, anywhere: inside a lock of ours, of a log handler,
of an SDK. What it returns is therefore only noted down, and settled by the maintenance. CPython runs one collection at
a time, so that one thread is all there is to remember.
"""

from __future__ import annotations

import gc
from threading import get_ident
from typing import Any

_thread: int | None = None


def is_collecting_here() -> bool:
    """Whether this call comes, by however many others, from the collector."""
    return _thread is not None and _thread == get_ident()


def _note(phase: str, _info: dict[str, Any]) -> None:
    global _thread  # noqa: PLW0603 - the collector is the process's
    _thread = get_ident() if phase == "start" else None


gc.callbacks.append(_note)
