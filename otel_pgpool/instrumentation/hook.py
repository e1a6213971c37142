"""The state of the instrumentation: the pools that it tracks, and the thread that watches them."""

from __future__ import annotations

import gc
import threading
import weakref
from collections import deque
from contextlib import suppress
from logging import DEBUG
from typing import TYPE_CHECKING, Any, TypeVar

from otel_pgpool.instrumentation.ledger import LEDGER, Ledger
from otel_pgpool.pool.checkout import NEVER
from otel_pgpool.pool.utilization import TICK
from otel_pgpool.runtime import fork
from otel_pgpool.runtime.background import Watcher
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.failures import Guard, is_asynchronous, log_failure
from otel_pgpool.runtime.text import LONGEST_NAME, printable
from otel_pgpool.runtime.thread_cache import renew_here
from otel_pgpool.runtime.wakeup import Wakeup

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from otel_pgpool.driver.dsn import Target
    from otel_pgpool.instrumentation.kind import Kind
    from otel_pgpool.instrumentation.settings import Settings

Note = TypeVar("Note")

LEAST_TICK = 0.01


def live_instances(classes: Collection[type]) -> Iterator[Any]:
    """Iterate over the objects of these classes that the garbage collector knows."""
    for found in gc.get_referrers(*classes):  # an object refers to its class
        if type(found) in classes:
            yield found


class Hook:
    """The pools tracked between ``instrument()`` and ``uninstrument()``."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.is_on = True
        self.ledgers: dict[Ledger, None] = {}
        self._gone: deque[Ledger] = deque()
        self._notes: deque[Callable[[], object]] = deque()
        self.guard = Guard("<not yet tracked>")
        self._start_afresh()
        _hooks.add(self)

    def _start_afresh(self) -> None:
        self._lock = threading.RLock()  # guards the creation of ledgers; reentrant, as a pool may be collected under it
        self.parked = True  # so that the first checkout starts the thread
        self._wakeup = Wakeup()
        self._watch = Watch(self, self._wakeup, "otel_pgpool-watch")

    def adopt(self, pool: Any, kind: Kind, name: str, target: Target, *, before: Ledger | None = None) -> Ledger | None:
        """Return the ledger of a pool, creating one if necessary; None if that fails or the instrumentation has ended.

        Args:
            pool: the pool.
            kind: how to read this kind of pool.
            name: name of the pool, unless another pool has that name.
            target: where the pool connects to.
            before: ledger of the pool that this one replaces; its name and totals are taken over.
        """
        try:
            self.settle()  # so that a pool that replaces a collected one gets its name
            with self._lock:
                if not self.is_on:
                    return None
                known: Ledger | None = getattr(pool, LEDGER, None)
                if known is not None and known.hook is self:  # another thread has created it
                    return known
                renew_here()
                ledger = Ledger(pool, kind, printable(name, LONGEST_NAME), target, self, before=before)
                self.ledgers[ledger] = None
                return ledger
        except Exception as error:  # noqa: BLE001 - the application continues without telemetry
            self.guard.lament(error)
            return None

    def dropped(self, ledger: Ledger) -> None:
        """Note that a pool was collected. Finalizers call this, so it does nothing else."""
        if self.is_on:
            self._gone.append(ledger)
        self._wakeup.ring()

    def later(self, deed: Callable[[], object]) -> None:
        """Note a call for the watching thread. Finalizers call this, so it does nothing else."""
        self._notes.append(deed)
        self._wakeup.ring()

    def settle(self) -> None:
        """Make the calls that finalizers have noted, and end the ledgers of collected pools."""
        for deed in _drained(self._notes):
            deed()
        for ledger in _drained(self._gone):
            self.ledgers.pop(ledger, None)
            ledger.end("reclaimed", "reclaimed")

    def forget_notes(self) -> None:
        """Drop, in a forked child, what the parent's finalizers have noted."""
        self._notes.clear()
        for ledger in _drained(self._gone):
            self.ledgers.pop(ledger, None)

    def wake(self) -> None:
        """Start a pass of the watching thread, because a connection was checked out."""
        self.parked = False
        try:
            self._watch.wake()
        except BaseException as error:  # the next checkout tries again
            self.parked = True
            if is_asynchronous(error):
                raise
            log_failure("the thread that watches instrumented pools could not be started", error, DEBUG)

    def end(self) -> None:
        """End every ledger and the thread."""
        with self._lock:  # no ledger is created after this
            self.is_on = False
        self.settle()
        for ledger in list(self.ledgers):
            ledger.end("released")
            pool = ledger.pool
            with suppress(AttributeError):  # the pool is collected, or does not allow it
                delattr(pool, LEDGER)
        self.ledgers.clear()
        self._wakeup.ring()
        self._watch.join(1.0)

    def _after_fork(self) -> None:
        self._start_afresh()


class Watch(Watcher[Hook]):
    """The watching thread.

    The thread sleeps until the next long hold is due, for at most a `TICK`. When nothing was checked out for a `TICK`,
    and nothing is held, it parks: the next checkout wakes it, which costs that checkout some 100 us.
    """

    _served = 0
    """Number of checkouts at the last pass."""

    def _look(self, hook: Hook) -> float | None:
        hook.settle()
        if not hook.is_on:
            return None
        now = monotonic()
        due = NEVER
        for ledger in list(hook.ledgers.copy()):
            due = min(due, ledger.look(now) or NEVER)  # `look` returns None after an error
        ledgers = list(hook.ledgers.copy())
        before, self._served = self._served, sum(ledger.served for ledger in ledgers)
        if self._served == before:
            hook.parked = True  # set before looking for holds; a checkout adds its hold before it reads `parked`
            if all(ledger.is_quiet for ledger in ledgers):
                return NEVER
            hook.parked = False
        return max(LEAST_TICK, min(due - monotonic(), TICK, hook.settings.long_hold))


def _drained(notes: deque[Note]) -> Iterator[Note]:
    """Remove and yield what is in the deque; another thread may do so at the same time."""
    with suppress(IndexError):
        while True:
            yield notes.popleft()


_hooks: weakref.WeakSet[Hook] = weakref.WeakSet()


def _after_fork() -> None:
    for hook in list(_hooks):
        hook._after_fork()


fork.register(_after_fork)
