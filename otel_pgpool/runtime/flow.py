"""The flow of control that runs at the moment: a thread, and within it a greenlet and a task of asyncio."""

from __future__ import annotations

import sys
import weakref
from typing import Any

from otel_pgpool.runtime import thread_cache

Flow = tuple[Any, ...]
"""Weak references to what identifies a flow. Two are equal only if they are of the same flow, which has not ended."""


def current_flow() -> Flow:
    """Return the identity of the running flow."""
    return weakref.ref(thread_cache.here.thread), _greenlet(), _task()


def _greenlet() -> object:
    """Return a reference to the running greenlet; None for that of the thread itself."""
    module = sys.modules.get("greenlet")
    greenlet = None if module is None else module.getcurrent()
    return None if greenlet is None or greenlet.parent is None else weakref.ref(greenlet)


def _task() -> object:
    """Return a reference to the running task of asyncio, without an import of asyncio."""
    if "asyncio" not in sys.modules:
        return None
    from otel_pgpool.runtime.tasks import running_task  # noqa: PLC0415 - imports asyncio, which few programs need

    return running_task()
