"""The start of checkouts by asyncio's tasks, from engines of ``create_async_engine``.

SQLAlchemy runs each call of an asynchronous engine in a greenlet of its own, and awaits there what the call waits for.
Many calls of one thread are therefore in progress at the same time, each known by its greenlet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otel_pgpool.instrumentation.adapters.sqlalchemy.private import current_greenlet
from otel_pgpool.pool.call_site import GETCONN_FRAMES, SkippedModules, call_sites, task_call_sites
from otel_pgpool.runtime.tasks import running_task

if TYPE_CHECKING:
    from types import FrameType

    from otel_pgpool.instrumentation.adapters.sqlalchemy.checkouts import EngineCheckout
    from otel_pgpool.pool.call_site import Stack
    from otel_pgpool.runtime.tasks import TaskReference

SKIPPED_MODULES = SkippedModules("asyncio", "contextlib", "opentelemetry", "sqlalchemy", "wrapt")
"""Modules to skip in the search for the line that awaits."""


def start_in_greenlet(checkout: EngineCheckout, frame: FrameType) -> int:
    """Start the checkout of a task, requested at this frame; return the key of the call, as `current_call_key`."""
    here, task = current_greenlet(), running_task()
    checkout.tracker.start_in_task_with(checkout, _call_sites(frame, here, task), task)
    return id(here)


def _call_sites(frame: FrameType, here: Any, task: TaskReference | None) -> Stack:
    """Return the call sites in the greenlet, as in a function that ``run_sync`` calls, then those of the task."""
    inner = call_sites(frame, SKIPPED_MODULES)
    awaiting = getattr(getattr(here, "parent", None), "gr_frame", None)
    outer = (frame.f_code, frame.f_lasti) if awaiting is None else task_call_sites(awaiting, task, SKIPPED_MODULES)
    return (inner + outer)[: 2 * GETCONN_FRAMES] if awaiting is not None or not inner else inner
