"""The stack of a thread as text, from the application's outermost frame inwards, without the server that called it."""

from __future__ import annotations

import gc
import sys
import threading
from typing import TYPE_CHECKING

from otel_pgpool.runtime import fork
from otel_pgpool.runtime.text import MOST_FRAMES, place_of

if TYPE_CHECKING:
    from collections.abc import Collection
    from types import CodeType, FrameType

Call = tuple[str, "CodeType", int]
"""A call in a stack: the module's name, the code and the line."""

SERVERS = frozenset(
    (
        *("cheroot", "daphne", "granian", "gunicorn", "hypercorn", "mod_wsgi", "uvicorn", "uwsgi", "waitress"),
        *("aiohttp", "asgiref", "bottle", "django", "falcon", "fastapi", "flask", "pyramid", "quart"),
        *("rest_framework", "sanic", "starlette", "tornado", "webob", "werkzeug"),
        *("apscheduler", "billiard", "celery", "dramatiq", "huey", "kombu", "rq", "uwsgidecorators", "vine"),
        *("anyio", "asyncio", "concurrent", "eventlet", "gevent", "greenlet", "multiprocessing", "threading", "uvloop"),
        *("_frozen_importlib", "http", "importlib", "runpy", "socketserver", "wsgiref", "xmlrpc"),
        *("click", "typer"),
    )
)
"""Packages that call an application: servers, frameworks, task queues, event loops, commands, standard modules."""

LIBRARIES = frozenset(("contextlib", "functools", "opentelemetry", "psycopg", "psycopg_pool", "sqlalchemy", "wrapt"))
"""Packages that may be between a server and the application, and that the application may call too."""

LAUNCHER = "__main__"
"""Module name of the script that was started: a server's script, or an application's."""


GC_MAY_RUN = sys.version_info[:2] == (3, 11)
"""Whether the garbage collector may run while ``sys._current_frames`` creates frame objects."""

_lock = threading.RLock()  # reentrant, for a signal handler
_has_disabled_gc = False


def stack_of(thread: threading.Thread, skipped: Collection[str] = ()) -> str:
    """Return the stack of a thread, one line for each frame, outermost first; empty if the thread has ended.

    Frames outside of the application's own outermost frame are left out. The lines contain call sites only, because the
    source lines that Python would add may contain SQL.

    Args:
        thread: a thread of the application.
        skipped: packages that are not the application's, in addition to the built-in list.
    """
    return text_of_calls(calls_from(current_frame(thread)), skipped)


def calls_from(frame: FrameType | None, outermost: FrameType | None = None) -> list[Call]:
    """Return the calls from the frame ``outermost`` inwards to ``frame``; none if ``frame`` is not inside of it.

    Without ``outermost``, return all. The frames are not kept, as they would keep the objects in their variables.
    """
    calls: list[Call] = []
    while frame is not None:
        calls.append((str(frame.f_globals.get("__name__", "")), frame.f_code, frame.f_lineno))
        if frame is outermost:
            break
        frame = frame.f_back
    is_complete = outermost is None or frame is not None
    return calls[::-1] if is_complete else []


def text_of_calls(calls: list[Call], skipped: Collection[str] = ()) -> str:
    """Return calls, given outermost first, as text in the format of `stack_of`."""
    packages = [module.partition(".")[0] for module, _code, _line in calls]
    shown = calls[_beginning(packages, SERVERS.union(skipped)) :]
    lines = [place_of(code, line) for _module, code, line in shown[:1] + shown[1:][-MOST_FRAMES + 1 :]]
    left_out = len(shown) - len(lines)
    if left_out:
        lines[1] = f"... {left_out + 1} more"
    return "\n".join(lines)


def _beginning(packages: list[str], servers: Collection[str]) -> int:
    """Return the index of the application's outermost frame; 0 if no frame is the application's.

    A script that runs a server does not count as the application if the server calls the application in turn.
    """
    own = [number for number, package in enumerate(packages) if package not in servers and package not in LIBRARIES]
    if not own:
        return 0
    following = next((number for number in range(own[0], len(packages)) if packages[number] != LAUNCHER), own[0])
    if packages[own[0]] == LAUNCHER and packages[following] in servers:
        return next((number for number in own if number > following), own[0])
    return own[0]


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
