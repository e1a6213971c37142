"""The call sites of a checkout: which lines of the application asked for the connection."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from otel_pgpool.runtime.text import file_of, function_of, line_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType, FrameType

    from otel_pgpool.runtime.tasks import TaskReference

Place = tuple["CodeType", int]
"""A call site: a code object and the index of its last instruction.

Recording the index costs less than computing a line number, which few checkouts need.
"""

Stack = tuple[Any, ...]
"""The call sites of a checkout, innermost first, as one flat tuple (code, index, code, index, ...).

A flat tuple costs half as much as a tuple of pairs.
"""

THREADING = threading.Thread.is_alive.__code__.co_filename
"""The file of ``threading``, as frames name it."""
THREAD_STARTERS = frozenset((THREADING, THREADING.replace("threading.py", "concurrent/futures/thread.py")))
"""Files of the standard library whose functions start threads, and call what these run."""

OWN_PACKAGE = __name__.partition(".")[0]
OWN_PROGRAM = f"{OWN_PACKAGE}.demo"
GETCONN_FRAMES = 4


class SkippedModules(dict[str, bool]):
    """A cache: module name -> True if its frames are skipped in the search for the application's call sites.

    Modules of this package are skipped, except for the demo's, which is an application.

    Args:
        packages: further top-level packages to skip.
    """

    def __init__(self, *packages: str) -> None:
        self._packages = packages

    def __missing__(self, module: object) -> bool:
        if not isinstance(module, str):  # code that was run with globals of its own
            return False
        package = module.partition(".")[0]
        is_own = package == OWN_PACKAGE and not module.startswith(OWN_PROGRAM)
        self[module] = skipped = is_own or package in self._packages
        return skipped


OWN_MODULES = SkippedModules()


def call_sites(frame: FrameType | None, skipped: SkippedModules = OWN_MODULES) -> Stack:
    """Return up to four call sites from ``frame`` outwards, innermost first."""
    stack: list[Any] = []
    while frame is not None and len(stack) < 2 * GETCONN_FRAMES:
        if not skipped[frame.f_globals.get("__name__", "")]:
            stack += (frame.f_code, frame.f_lasti)
        frame = frame.f_back
    return tuple(stack)


def caller_call_sites(wrapper: FrameType, skipped: SkippedModules = OWN_MODULES) -> Stack:
    """Return the call sites of a wrapper's callers.

    If there are none, for example because the wrapper is a thread's first function, return the wrapper's own.
    """
    return call_sites(wrapper.f_back, skipped) or (wrapper.f_code, wrapper.f_lasti)


def caller_of(wrapper: FrameType) -> FrameType:
    """Return the frame that called a wrapper; the wrapper's own if it is the first of a thread or a greenlet."""
    return wrapper.f_back or wrapper


def task_call_sites(frame: FrameType, task: TaskReference | None, skipped: SkippedModules = OWN_MODULES) -> Stack:
    """Return up to four call sites of a task, from ``frame`` outwards to the task's own coroutine.

    Call sites of the event loop, and of the code that started it, are left out. If no other is left, return that of
    ``frame``.

    Args:
        frame: the innermost frame.
        task: the running task; None if there is none.
        skipped: modules to skip.
    """
    root = None if task is None else task.root
    stack: list[Any] = []
    left = GETCONN_FRAMES
    each: FrameType | None = frame
    while each is not None and left:
        if not skipped[each.f_globals.get("__name__", "")]:
            stack += each.f_code, each.f_lasti
            left -= 1
        if each is root:
            break
        each = each.f_back
    return tuple(stack) or (frame.f_code, frame.f_lasti)


def call_sites_fast(frame: FrameType) -> Stack:
    """Return the four innermost call sites, without skipping any. Costs a third of `call_sites`."""
    if (second := frame.f_back) is None or (third := second.f_back) is None or (fourth := third.f_back) is None:
        return call_sites(frame) or (frame.f_code, frame.f_lasti)
    return (
        frame.f_code,
        frame.f_lasti,
        second.f_code,
        second.f_lasti,
        third.f_code,
        third.f_lasti,
        fourth.f_code,
        fourth.f_lasti,
    )


def call_sites_fast_filtered(frame: FrameType, skipped: SkippedModules) -> Stack:
    """Return the four innermost call sites if all are the application's; otherwise the result of `call_sites`.

    Hot path: repeats the tuple of `call_sites_fast`.
    """
    try:
        if (
            (second := frame.f_back) is None
            or (third := second.f_back) is None
            or (fourth := third.f_back) is None
            or skipped[frame.f_globals["__name__"]]
            or skipped[second.f_globals["__name__"]]
            or skipped[third.f_globals["__name__"]]
            or skipped[fourth.f_globals["__name__"]]
        ):
            return call_sites(frame, skipped) or (frame.f_code, frame.f_lasti)
    except KeyError:  # a frame of code without a module name
        return call_sites(frame, skipped)
    return (  # as `call_sites_fast`, which would cost a call
        frame.f_code,
        frame.f_lasti,
        second.f_code,
        second.f_lasti,
        third.f_code,
        third.f_lasti,
        fourth.f_code,
        fourth.f_lasti,
    )


def places(stack: Stack) -> Iterator[Place]:
    """Iterate over the call sites of a stack, innermost first."""
    return zip(stack[::2], stack[1::2], strict=True)


def path_to(stack: Stack) -> str:
    """Return a text with one line for each call site, innermost first, without the code that started the thread."""
    shown = list(places(stack))
    while len(shown) > 1 and shown[-1][0].co_filename in THREAD_STARTERS:
        shown.pop()
    return "\n".join(map(describe, shown))


def describe(place: Place) -> str:
    """Return a call site as ``file:line function``."""
    code, instruction = place
    return f"{file_of(code)}:{line_of(code, instruction)} {function_of(code)}"
