"""The hook while it is on: the pools that it has met, and the one thread that watches them all."""

from __future__ import annotations

import gc
import threading
import weakref
from collections import deque
from contextlib import suppress
from logging import DEBUG
from typing import TYPE_CHECKING, Any, TypeVar

from otel_pgpool import _fork
from otel_pgpool._checkout import renew_here
from otel_pgpool._clock import monotonic
from otel_pgpool._guard import Guard, is_asynchronous, log_failure
from otel_pgpool._level import TICK
from otel_pgpool._slot import NEVER
from otel_pgpool._texts import LONGEST_NAME, printable
from otel_pgpool._wakeup import Wakeup
from otel_pgpool._watcher import Watcher
from otel_pgpool.instrumentation.ledger import LEDGER, Ledger

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from otel_pgpool._target import Target
    from otel_pgpool.instrumentation.kind import Kind
    from otel_pgpool.instrumentation.settings import Settings

Note = TypeVar("Note")

LEAST_TICK = 0.01


def live_instances(classes: Collection[type]) -> Iterator[Any]:
    """Every object of these classes that the collector knows."""
    for found in gc.get_referrers(*classes):  # an object refers to its class
        if type(found) in classes:
            yield found


class Hook:
    """Every pool that was met since ``instrument()``, until ``uninstrument()``."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.is_on = True
        self.ledgers: dict[Ledger, None] = {}
        self._gone: deque[Ledger] = deque()
        self._notes: deque[Callable[[], object]] = deque()
        self.guard = Guard("new to the hook")
        self._start_afresh()
        _hooks.add(self)

    def _start_afresh(self) -> None:
        self._lock = threading.RLock()  # guards the opening of ledgers; reentrant, as a collected pool may end in it
        self.parked = True  # there is no thread yet
        self._wakeup = Wakeup()
        self._watch = Watch(self, self._wakeup, "otel_pgpool-watch")

    def adopt(self, pool: Any, kind: Kind, name: str, target: Target, *, before: Ledger | None = None) -> Ledger | None:
        """The ledger of a pool, opened if it has none; None where that fails, or the hook is off.

        Args:
            pool: whose.
            kind: of it.
            name: as it is called unless another pool is.
            target: where it connects to.
            before: of the pool whose place this one takes, with its name and totals.
        """
        try:
            self.settle()  # so that a pool made in the place of one that was dropped has its name
            with self._lock:
                if not self.is_on:
                    return None
                known: Ledger | None = getattr(pool, LEDGER, None)
                if known is not None and known.hook is self:  # another thread was faster
                    return known
                renew_here()
                ledger = Ledger(pool, kind, printable(name, LONGEST_NAME), target, self, before=before)
                self.ledgers[ledger] = None
                return ledger
        except Exception as error:  # noqa: BLE001 - the program goes on without telemetry
            self.guard.lament(error)
            return None

    def dropped(self, ledger: Ledger) -> None:
        """A pool was collected. Called by finalizers, hence it only takes a note."""
        if self.is_on:
            self._gone.append(ledger)
        self._wakeup.ring()

    def later(self, deed: Callable[[], object]) -> None:
        """Let the watch do it. Called by finalizers, hence it only takes a note."""
        self._notes.append(deed)
        self._wakeup.ring()

    def settle(self) -> None:
        """Do what finalizers have noted, and close the ledgers of pools that were collected."""
        for deed in _drained(self._notes):
            deed()
        for ledger in _drained(self._gone):
            self.ledgers.pop(ledger, None)
            ledger.end("reclaimed", "reclaimed")

    def forget_notes(self) -> None:
        """In a forked child: what the parent's finalizers have noted is the parent's to do."""
        self._notes.clear()
        for ledger in _drained(self._gone):
            self.ledgers.pop(ledger, None)

    def wake(self) -> None:
        """Let the watch look: something is out."""
        self.parked = False
        try:
            self._watch.wake()
        except BaseException as error:  # the next checkout tries again
            self.parked = True
            if is_asynchronous(error):
                raise
            log_failure("the thread that watches hooked pools could not be started", error, DEBUG)

    def end(self) -> None:
        """Close every ledger and end the thread."""
        with self._lock:  # from here on none is opened
            self.is_on = False
        self.settle()
        for ledger in list(self.ledgers):
            ledger.end("released")
            pool = ledger.pool
            with suppress(AttributeError):  # gone, or it does not let go
                delattr(pool, LEDGER)
        self.ledgers.clear()
        self._wakeup.ring()
        self._watch.join(1.0)

    def _after_fork(self) -> None:
        self._start_afresh()


class Watch(Watcher[Hook]):
    """It sleeps until the next long hold is due, for at most a tick.

    When nothing has been checked out for a tick, and nothing is out, it parks: the next checkout wakes it, which costs
    that one some 100 us.
    """

    _served = 0
    """Checkouts, at the last look."""

    def _look(self, hook: Hook) -> float | None:
        hook.settle()
        if not hook.is_on:
            return None
        now = monotonic()
        due = NEVER
        for ledger in list(hook.ledgers.copy()):
            due = min(due, ledger.look(now) or NEVER)  # None where something went wrong
        ledgers = list(hook.ledgers.copy())
        before, self._served = self._served, sum(ledger.served for ledger in ledgers)
        if self._served == before:
            hook.parked = True  # parked first, and looked second: a checkout enters its hold first, and asks second
            if all(ledger.is_quiet for ledger in ledgers):
                return NEVER
            hook.parked = False
        return max(LEAST_TICK, min(due - monotonic(), TICK, hook.settings.long_hold))


def _drained(notes: deque[Note]) -> Iterator[Note]:
    """Take what has gathered; another thread may be doing so too."""
    with suppress(IndexError):
        while True:
            yield notes.popleft()


_hooks: weakref.WeakSet[Hook] = weakref.WeakSet()


def _after_fork() -> None:
    for hook in list(_hooks):
        hook._after_fork()


_fork.register(_after_fork)
