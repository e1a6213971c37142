"""The stack of an asyncio task as text: its coroutines, from its own one inwards to where it waits or runs."""

from __future__ import annotations

import gc
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import TYPE_CHECKING, Any

from otel_pgpool.runtime.tasks import TaskReference, frame_of
from otel_pgpool.telemetry.stacks import Call, calls_from, current_frame, text_of_calls

if TYPE_CHECKING:
    import threading
    from collections.abc import Collection

AWAITED = {CoroutineType: "cr_await", GeneratorType: "gi_yieldfrom", AsyncGeneratorType: "ag_await"}
"""Name of the attribute that refers to the awaited object, by type of the awaiting object."""

DEEPEST = 1000
"""Maximum number of coroutines that are read."""


def task_stack_of(task: TaskReference, thread: threading.Thread, skipped: Collection[str] = ()) -> str:
    """Return the stack of a task in the format of `stack_of`; empty if the task has ended.

    Any thread may call this. Nothing of the task is called, and its loop goes on meanwhile.

    Args:
        task: the task.
        thread: the thread of the task's loop.
        skipped: packages that are not the application's, in addition to the built-in list.
    """
    if task.has_ended:
        return ""
    calls = _calls_of_running(task, thread) if task.is_running else []
    return text_of_calls(calls or _calls_of_suspended(task), skipped)


def _calls_of_running(task: TaskReference, thread: threading.Thread) -> list[Call]:
    """Return the calls of a running task; none if the loop has begun to run another one."""
    root = task.root
    frame = None if root is None else current_frame(thread)
    return calls_from(frame, root)


def _calls_of_suspended(task: TaskReference) -> list[Call]:
    calls: list[Call] = []
    own = task.task
    awaiting: Any = None if own is None else own.get_coro()
    while awaiting is not None and len(calls) < DEEPEST:
        frame = frame_of(awaiting)
        if frame is None:
            break
        calls.append((str(frame.f_globals.get("__name__", "")), frame.f_code, frame.f_lineno))
        awaiting = _inner(getattr(awaiting, AWAITED[type(awaiting)]))
    return calls


def _inner(awaited: object) -> object:
    """Return the coroutine or generator that is awaited, maybe in one of Python's own wrappers; None for a future.

    The wrappers, such as that of an iteration's step, have no attribute for what is inside.
    """
    if type(awaited) in AWAITED:
        return awaited
    return next((each for each in gc.get_referents(awaited) if type(each) in AWAITED), None)
