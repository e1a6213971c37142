"""Detection of a fork, however it was made, and the renewal of this package's state in the child."""

from __future__ import annotations

import _imp
import math
import mmap
import os
import sys
import threading
from contextlib import contextmanager, suppress
from functools import wraps
from threading import get_ident, get_native_id
from time import sleep
from typing import TYPE_CHECKING, TypeVar

from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.failures import log_failure

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Callable, Iterator

    from typing_extensions import ParamSpec

    P = ParamSpec("P")

T = TypeVar("T")

MADV_WIPEONFORK = getattr(mmap, "MADV_WIPEONFORK", 18)
"""Linux's advice to give a forked child a page of zeros in place of the parent's (madvise(2), since Linux 4.14)."""


class PidMarker:
    """A marker that compares process ids, for systems that cannot wipe a page. A test takes 250 ns instead of 8 ns."""

    def __init__(self) -> None:
        self._pid = 0

    def __bool__(self) -> bool:
        return os.getpid() == self._pid

    @property
    def value(self) -> int:
        """1 in the process that has set the value, otherwise 0."""
        return int(bool(self))

    @value.setter
    def value(self, _one: int) -> None:
        self._pid = os.getpid()


def make_marker() -> ctypes.c_ubyte | PidMarker:
    """Create an object that is true once its ``value`` is set to 1, and false again in a forked child."""
    try:
        import ctypes  # noqa: PLC0415 - CPython can be built without it

        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(MADV_WIPEONFORK)
        return ctypes.c_ubyte.from_buffer(page)
    except (ImportError, AttributeError, OSError, TypeError, ValueError):  # another system, or an older kernel
        return PidMarker()


is_here = make_marker()
"""The marker of this process. ``if not is_here: renew()`` precedes each use of state that a parent may have left.

Python runs its fork callbacks for ``os.fork`` only. Servers written in C, such as uWSGI, may fork without running them.
"""
is_here.value = 1

_callbacks: list[Callable[[], None]] = []
_locks: dict[int, threading.RLock] = {}  # by process id, because the parent's lock may have been held at the fork
_renewing: set[int] = set()  # process ids
_pending: dict[int, list[Callable[[], None]]] = {}  # by process id: the callbacks that have yet to be called
_python_forks = False  # ``os.fork`` is in progress, which renews the interpreter itself


def register(callback: Callable[[], None]) -> None:
    """Register a function to be called in each forked child, in the order of registration.

    The function is called before the first checkout in the child at the latest, maybe while other threads of the child
    run. No such function runs in the parent before the fork, so locks of the parent may be held forever in the child.
    """
    _callbacks.append(callback)


def renew() -> None:
    """Renew this package's state in a forked child, once. Other threads wait until it is done."""
    pid = os.getpid()
    if _interpreter is not None and not _python_forks and pid not in _pending:
        _pending[pid] = list(_callbacks)  # set first, because a third-party fork callback may call `renew` again
        _interpreter.renew()
    if not is_here:
        _renew()


def _renew() -> None:
    global _python_forks  # noqa: PLW0603 - the child inherits the parent's value
    _python_forks = False
    _delaying.clear()
    _ending.clear()
    pid = os.getpid()
    pending = _pending.setdefault(pid, list(_callbacks))
    with _locks.setdefault(pid, threading.RLock()):
        if is_here or pid in _renewing:  # a callback may call `renew` again
            return
        _renewing.add(pid)
        try:
            while pending:  # after an interrupt the next checkout calls the rest
                _run(pending[0])
                del pending[0]
            is_here.value = 1
        finally:
            _renewing.discard(pid)
        for kept in (_locks, _pending):
            for other in kept.keys() - {pid}:
                del kept[other]


class _Interpreter:
    """Renewal of CPython's own state after a fork made in C, by ``PyOS_AfterFork_Child``, which also calls `_renew`.

    Without this call the GIL waits forever for a thread of the parent that requested it at the moment of the fork, and
    ``threading`` waits for a thread that was starting or ending then. The call is made only in children that have no
    other thread yet. No code here may release the GIL before the end, so the number of threads is read by plain C
    calls.
    """

    def __init__(self) -> None:
        """Load what `renew` needs, because a child cannot load anything.

        Raises:
            ImportError: CPython was built without ctypes.
            OSError, AttributeError: the system or the interpreter is of another kind.
        """
        import ctypes  # noqa: PLC0415 - see above

        self._c = ctypes.PyDLL(None)
        self._c.PyOS_AfterFork_Child.restype = None
        self._stat = ctypes.create_string_buffer(1024)

    def renew(self) -> None:
        if self._count_threads() != 1:
            return
        if not _imp.lock_held():  # PyOS_AfterFork_Child releases this lock
            _imp.acquire_lock()
        self._c.PyOS_AfterFork_Child()

    def _count_threads(self) -> int:
        """Count the threads of this process by proc_pid_stat(5); return 0 if the file cannot be read."""
        file = self._c.open(b"/proc/self/stat", os.O_RDONLY)
        if file < 0:
            return 0
        length = self._c.read(file, self._stat, len(self._stat))
        self._c.close(file)
        _name, _, fields = self._stat.raw[: max(0, length)].rpartition(b")")
        return int(fields.split()[17]) if fields else 0


def _load_interpreter() -> _Interpreter | None:
    with suppress(ImportError, OSError, AttributeError):
        return _Interpreter() if sys.platform == "linux" else None
    return None


_interpreter = _load_interpreter()


def renewed(method: Callable[P, T]) -> Callable[P, T]:
    """Decorate a method so that each call renews a forked child's state first. For methods off the hot path."""

    @wraps(method)
    def renewing(*args: P.args, **kwargs: P.kwargs) -> T:
        if not is_here:
            renew()
        return method(*args, **kwargs)

    return renewing


def _run(callback: Callable[[], None]) -> None:
    try:
        callback()
    except Exception as error:  # noqa: BLE001 - a failure must not keep the other parts from being renewed
        log_failure("a part of otel_pgpool could not be renewed in a forked child", error)


FORK_WAIT = 1.0
"""Seconds that a fork waits for connects and notifications in progress."""
CONNECT_WAIT = 5.0
"""Seconds that a connect or a notification waits for a fork in progress.

Longer than a fork waits: otherwise a connect could stop waiting with the fork, and take libpq's locks at that moment.
"""

_delaying: list[tuple[int, float]] = []  # threads by identity, maybe more than once, and until when they delay a fork
_ending: set[int] = set()  # threads, by native id


@contextmanager
def keep_from_forking(seconds: float = math.inf) -> Iterator[None]:
    """Delay ``os.fork`` while this thread connects or notifies.

    A child would inherit the locks that libpq, or OpenTelemetry's SDK and its exporters, hold at that moment.

    Args:
        seconds: time for which this thread delays a fork at most; by default `FORK_WAIT` is the only limit.
    """
    me = get_ident(), monotonic() + seconds
    _delaying.append(me)  # before reading `_python_forks`, so that at least one side sees the other
    if _python_forks:
        _delaying.remove(me)
        _wait_until(lambda: not _python_forks, CONNECT_WAIT)
        me = get_ident(), monotonic() + seconds
        _delaying.append(me)
    try:
        yield
    finally:
        with suppress(ValueError):  # a forked child has emptied the list
            _delaying.remove(me)


def delay_forks_until_this_thread_ends() -> None:
    """Delay ``os.fork`` until this thread, which has connected, has ended.

    If the server asks for a password, OpenSSL keeps memory for the thread and frees it under a lock, after Python
    considers the thread ended.
    """
    _ending.difference_update([number for number in [*_ending] if not _is_alive(number)])
    _ending.add(get_native_id())


def _is_alive(number: int) -> bool:
    """Return whether a thread of this process has not ended; always False on systems other than Linux."""
    return os.path.exists(f"/proc/self/task/{number}")  # noqa: PTH110 - polled while a fork waits: without a Path object each time


def _wait_until(condition: Callable[[], bool], seconds: float) -> None:
    due = monotonic() + seconds
    while not condition() and monotonic() < due:
        sleep(0.001)


def _before() -> None:
    global _python_forks  # noqa: PLW0603 - one flag for the whole process
    _python_forks = True
    me, mine = get_ident(), get_native_id()  # excluded: under gevent this thread may be a connector's too

    def is_quiet() -> bool:
        now = monotonic()
        delaying = any(thread != me and now < until for thread, until in list(_delaying))
        return not delaying and not any(_is_alive(number) for number in _ending - {mine})

    _wait_until(is_quiet, FORK_WAIT)


def _after_in_parent() -> None:
    global _python_forks  # noqa: PLW0603 - one flag for the whole process
    _python_forks = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_renew)
