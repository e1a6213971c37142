"""The acquires of asyncio's tasks, by ``create_async_engine``.

SQLAlchemy runs each call of an asynchronous engine in a greenlet of its own, and awaits there what the call waits for.
Many calls of one thread are therefore in progress at the same time, each known by its greenlet.
"""

from __future__ import annotations

import weakref
from functools import wraps
from typing import TYPE_CHECKING, Any

from sqlalchemy.util.queue import Empty

from otel_pgpool.instrumentation.adapters.sqlalchemy.acquires import Acquires
from otel_pgpool.instrumentation.adapters.sqlalchemy.checkouts import EngineCheckout
from otel_pgpool.instrumentation.adapters.sqlalchemy.private import current_greenlet, driver_connection
from otel_pgpool.instrumentation.guards import raise_if_asynchronous
from otel_pgpool.pool.call_site import GETCONN_FRAMES, SkippedModules, call_sites, task_call_sites
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.tasks import running_task

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from otel_pgpool.instrumentation.tracker import PoolTracker
    from otel_pgpool.pool.call_site import Stack
    from otel_pgpool.runtime.tasks import TaskReference

BETWEEN = SkippedModules("asyncio", "contextlib", "opentelemetry", "sqlalchemy", "wrapt")
"""Modules to skip in the search for the line that awaits."""


class TaskAcquires(Acquires):
    """The acquires of tasks."""

    def wrap_queue_get(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap the ``get`` of the queue in which tasks wait."""
        in_progress = self._in_progress

        @wraps(original)
        def get(queue: Any, block: Any = True, timeout: float | None = None) -> Any:  # noqa: FBT002 - its signature
            request = in_progress.get(id(current_greenlet())) if block else None
            if request is None or request.queued is not None:
                return original(queue, block, timeout)
            try:
                return original(queue, False)  # noqa: FBT003 - its signature
            except Empty:
                pass
            request.tracker.enqueued(request)
            try:
                return original(queue, block, timeout)
            finally:
                request.wait_ended = monotonic()

        return get

    def check_out(self, tracker: PoolTracker, frame: FrameType, request: Callable[[], Any]) -> Any:
        """Record a checkout by a call of ``request``, in the greenlet of the call."""
        in_progress = self._in_progress
        here, task = current_greenlet(), running_task()
        checkout = EngineCheckout()
        checkout.tracker = tracker
        tracker.start_in_task_with(checkout, _call_sites(frame, here, task), task)
        key = id(here)
        outer = in_progress.get(key)
        in_progress[key] = checkout
        try:
            try:
                fairy = request()
            finally:
                if outer is None:
                    in_progress.pop(key, None)
                else:
                    in_progress[key] = outer
            try:
                conn, checkout.fairy = fairy.dbapi_connection, weakref.ref(fairy)
            except Exception as error:  # noqa: BLE001 - third-party code may return any object
                raise_if_asynchronous(error)
                conn = None
            if conn is None or id(conn) in self._held:
                self._acquired_again(checkout, fairy, conn)
            else:
                self._held[id(conn)] = checkout
                tracker.acquired(checkout, driver_connection(conn))
        except BaseException as error:
            self._failed(checkout, error)
            raise
        return fairy


def _call_sites(frame: FrameType, here: Any, task: TaskReference | None) -> Stack:
    """Return the call sites in the greenlet, as in a function that ``run_sync`` calls, then those of the task."""
    inner = call_sites(frame, BETWEEN)
    awaiting = getattr(getattr(here, "parent", None), "gr_frame", None)
    outer = (frame.f_code, frame.f_lasti) if awaiting is None else task_call_sites(awaiting, task, BETWEEN)
    return (inner + outer)[: 2 * GETCONN_FRAMES] if awaiting is not None or not inner else inner
