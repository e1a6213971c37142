"""The stack of a thread as text, from the application's outermost frame inwards, without the server that called it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_pgpool.runtime.text import MOST_FRAMES, place_of
from otel_pgpool.telemetry.frames import current_frame

if TYPE_CHECKING:
    import threading
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

    A script that runs a server is not taken for the application if the server calls the application in turn.
    """
    own = [number for number, package in enumerate(packages) if package not in servers and package not in LIBRARIES]
    if not own:
        return 0
    following = next((number for number in range(own[0], len(packages)) if packages[number] != LAUNCHER), own[0])
    if packages[own[0]] == LAUNCHER and packages[following] in servers:
        return next((number for number in own if number > following), own[0])
    return own[0]
