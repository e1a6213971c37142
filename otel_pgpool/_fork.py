"""Whether this process was forked, however that was done, and what has to be renewed in it."""

from __future__ import annotations

import _imp
import mmap
import os
import sys
import threading
from contextlib import contextmanager, suppress
from functools import wraps
from threading import get_ident, get_native_id
from time import sleep
from typing import TYPE_CHECKING, TypeVar

from otel_pgpool._clock import monotonic
from otel_pgpool._guard import log_failure

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Callable, Iterator

    from typing_extensions import ParamSpec

    P = ParamSpec("P")

T = TypeVar("T")

MADV_WIPEONFORK = getattr(mmap, "MADV_WIPEONFORK", 18)
"""Linux's advice to give a forked child zeros in the place of a page (madvise(2), since 4.14)."""


class ByPid:
    """Mark a process by its id, for systems that cannot wipe a page: each look takes 250 ns instead of 8."""

    def __init__(self) -> None:
        self._pid = 0

    def __bool__(self) -> bool:
        return os.getpid() == self._pid

    @property
    def value(self) -> int:
        """1 in the process that has set it, otherwise 0."""
        return int(bool(self))

    @value.setter
    def value(self, _one: int) -> None:
        self._pid = os.getpid()


def make_marker() -> ctypes.c_ubyte | ByPid:
    """Make an object that is true once its ``value`` is set to 1, and false again in a forked child."""
    try:
        import ctypes  # noqa: PLC0415 - CPython can be built without it

        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(MADV_WIPEONFORK)
        return ctypes.c_ubyte.from_buffer(page)
    except (ImportError, AttributeError, OSError, TypeError, ValueError):  # another system, or an older kernel
        return ByPid()


is_here = make_marker()
"""``if not is_here: renew()`` stands before whatever must not use what a parent process has left.

Python runs its own callbacks after ``os.fork`` only. Servers written in C, as uWSGI, may fork without a word to Python.
"""
is_here.value = 1

_callbacks: list[Callable[[], None]] = []
_locks: dict[int, threading.RLock] = {}  # by process id: another thread of the parent may have held the parent's
_renewing: set[int] = set()  # process ids
_pending: dict[int, list[Callable[[], None]]] = {}  # by process id: the callbacks that are still to be called there
_python_forks = False  # ``os.fork`` is at work: it renews the interpreter itself


def register(callback: Callable[[], None]) -> None:
    """Have a function called in each forked child, in the order of registration.

    It runs before the first checkout there at the latest, maybe beside threads of the child that use no pool. Nothing
    of the kind has run in the parent before the fork, so locks of the parent's may be held for ever.
    """
    _callbacks.append(callback)


def renew() -> None:
    """Renew what the parent process has left, once in each forked child; other threads wait until that is done."""
    pid = os.getpid()
    if _interpreter is not None and not _python_forks and pid not in _pending:
        _pending[pid] = list(_callbacks)  # before: a callback of somebody else's may come here again
        _interpreter.renew()
    if not is_here:
        _renew()


def _renew() -> None:
    global _python_forks  # noqa: PLW0603 - it is the parent's
    _python_forks = False
    _connecting.clear()
    _ending.clear()
    pid = os.getpid()
    pending = _pending.setdefault(pid, list(_callbacks))
    with _locks.setdefault(pid, threading.RLock()):
        if is_here or pid in _renewing:  # a callback may come here again
            return
        _renewing.add(pid)
        try:
            while pending:  # an interrupt leaves the rest to the next checkout
                _run(pending[0])
                del pending[0]
            is_here.value = 1
        finally:
            _renewing.discard(pid)
        for kept in (_locks, _pending):
            for other in kept.keys() - {pid}:
                del kept[other]


class _Interpreter:
    """Does for CPython what a fork made in C has left out: it calls ``PyOS_AfterFork_Child``, and that calls `_renew`.

    Without it the GIL waits for ever for a thread of the parent that wanted it at the moment of the fork, and so does
    ``threading`` for one that was starting or ending then. It is for children that have no other threads yet. Nothing
    in here may release the GIL before it is done, hence the number of threads is read with plain C calls.
    """

    def __init__(self) -> None:
        """Load what is needed; nothing can be loaded in a child.

        Raises:
            ImportError: CPython was built without ctypes.
            OSError, AttributeError: a system or an interpreter of another kind.
        """
        import ctypes  # noqa: PLC0415 - see above

        self._c = ctypes.PyDLL(None)
        self._c.PyOS_AfterFork_Child.restype = None
        self._stat = ctypes.create_string_buffer(1024)

    def renew(self) -> None:
        if self._count_threads() != 1:
            return
        if not _imp.lock_held():  # it is released in there
            _imp.acquire_lock()
        self._c.PyOS_AfterFork_Child()

    def _count_threads(self) -> int:
        """Count the threads of this process by proc_pid_stat(5); 0 where it cannot be read."""
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
    """Have what a parent process has left renewed before each call of a method; for those off the hot path."""

    @wraps(method)
    def renewing(*args: P.args, **kwargs: P.kwargs) -> T:
        if not is_here:
            renew()
        return method(*args, **kwargs)

    return renewing


def _run(callback: Callable[[], None]) -> None:
    try:
        callback()
    except Exception as error:  # noqa: BLE001 - the other parts are renewed all the same
        log_failure("otel_pgpool could not renew a part of itself in the child of a fork", error)


FORK_WAIT = 1.0
"""Seconds that a fork waits for connects."""
CONNECT_WAIT = 5.0
"""Seconds that a connect waits for a fork: one that gave up when the fork does would take libpq's locks just then."""

_connecting: set[int] = set()  # threads, by identity
_ending: set[int] = set()  # threads, by the system's number


@contextmanager
def keep_from_forking() -> Iterator[None]:
    """Keep ``os.fork`` off while this thread connects: a child inherits libpq's locks as they are, for ever."""
    me = get_ident()
    _connecting.add(me)  # before the look: either side sees the other
    if _python_forks:
        _connecting.discard(me)
        _wait_until(lambda: not _python_forks, CONNECT_WAIT)
        _connecting.add(me)
    try:
        yield
    finally:
        _connecting.discard(me)


def note_end() -> None:
    """Have ``os.fork`` wait until this thread, which has connected, is gone.

    Where the server asks for a password, OpenSSL has memory for each thread, and frees it under a lock after Python has
    done with the thread.
    """
    _ending.difference_update([number for number in [*_ending] if not _lives(number)])
    _ending.add(get_native_id())


def _lives(number: int) -> bool:
    """Whether a thread of this process has not ended; False on systems other than Linux, which do not tell."""
    return os.path.exists(f"/proc/self/task/{number}")  # noqa: PTH110 - a fork waits: no object for each look


def _wait_until(condition: Callable[[], bool], seconds: float) -> None:
    due = monotonic() + seconds
    while not condition() and monotonic() < due:
        sleep(0.001)


def _before() -> None:
    global _python_forks  # noqa: PLW0603 - see there
    _python_forks = True
    me, mine = get_ident(), get_native_id()  # which may be a connector's too: a greenlet is a thread's
    _wait_until(lambda: not (_connecting - {me} or any(_lives(number) for number in _ending - {mine})), FORK_WAIT)


def _after_in_parent() -> None:
    global _python_forks  # noqa: PLW0603 - see there
    _python_forks = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_renew)
