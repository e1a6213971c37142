"""The record of one checkout, from the request to the return of the connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from otel_pgpool.pool.call_site import describe, path_to, places
from otel_pgpool.runtime import thread_cache
from otel_pgpool.runtime.text import thread_names
from otel_pgpool.stats import Holder

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence

    from otel_pgpool.pool.call_site import Stack
    from otel_pgpool.pool.slot import Slot


class Attempt(NamedTuple):
    """A failed attempt within a checkout: a dead connection, or a failed connect."""

    at: float
    error_type: str
    delay: float
    """Seconds until the next attempt."""
    message: str = ""
    """Text of the error, free of secrets."""


class Blocker(NamedTuple):
    """A hold that was in progress when a checkout queued."""

    observed: Any
    """The observer's data of the checkout that holds."""
    connection_id: int
    pid: int
    held: float
    """Seconds that the hold had lasted when the checkout queued."""
    stack: Stack
    """Call sites of the checkout that holds.

    The checkout itself is not kept, as its own blockers would form a chain.
    """

    @classmethod
    def of(cls, hold: Checkout, now: float) -> Blocker:
        """Describe a hold in progress."""
        slot = hold.slot
        return cls(hold.observed, slot.serial, slot.pid, max(0.0, now - hold.acquired), hold.stack)

    @property
    def path_to(self) -> str:
        """The call sites as text, one line for each frame, innermost first."""
        return path_to(self.stack)


class Checkout:
    """The record of one checkout. Times are readings of ``time.monotonic`` in seconds.

    A checkout has no reference to its connection, so that a connection dropped by its holder is collected and
    reclaimed.
    """

    __slots__ = (
        "__dict__",
        "acquired",
        "ended",
        "lent",
        "outcome",
        "path",
        "released",
        "slot",
        "stack",
        "started",
        "thread",
    )

    started: float
    stack: Stack
    """Call sites of the request."""
    thread: threading.Thread
    """The thread that asked for the connection."""
    path: str | None
    """How the connection was obtained: ``idle``, ``queued`` or ``new``; None until the hand-over."""
    slot: Slot
    """The slot of the connection; set at the hand-over, like ``acquired``."""
    acquired: float
    lent: bool
    """Present, and True, while the checkout holds the connection; deleting it is the atomic step of a release."""
    ended: bool
    """Present, and True, once the observer was notified of the checkout's end."""
    released: float
    """When the connection was returned or the checkout failed; set at that moment, like ``outcome``."""
    outcome: str

    # Defaults of the attributes that few checkouts set: on the class they cost the others nothing.
    block: bool = True
    """Whether the checkout belongs to ``with pool.connection()``, inside which its span is the current one."""
    observed: Any = None
    """Data of the observer."""
    waits_for: str = "idle"
    """The path that the checkout would have if it were served now."""
    queued: float | None = None
    blockers: Sequence[Blocker] = ()
    retries: int = 0
    attempts: Sequence[Attempt] = ()
    error: BaseException | None = None
    """The error of the last failed attempt."""
    expected_hold: float | None = None
    """Seconds that the hold may last, infinite for any duration; None for the pool's ``long_hold``."""
    flagged: bool = False
    """Whether the hold has passed its threshold."""
    flagged_at: float = 0.0
    told: bool = False
    """Whether the observer has reported the long hold."""
    error_type: str | None = None
    """``error.type`` of what failed in the pool's own work: the wait, a connect, a commit or a rollback."""
    error_message: str = ""

    def retried(self, attempt: Attempt, error: BaseException | None) -> None:
        """Count a failed attempt. Called by the thread of the checkout, or under the lock while that thread waits."""
        self.retries += 1
        self.error = error
        self.attempts = (*self.attempts, attempt)

    def fail(self, error_type: str, message: str) -> None:
        """Record what failed in the pool's own work: the wait, a connect, a commit or a rollback."""
        self.error_type = error_type
        self.error_message = message

    @property
    def where(self) -> str:
        """The innermost call site of the request, as ``file:line function``."""
        return describe(next(places(self.stack)))

    @property
    def path_to(self) -> str:
        """The call sites of the request as text, one line for each frame, innermost first."""
        return path_to(self.stack)

    def holder(self, now: float) -> Holder:
        """Return a description of the hold for people."""
        return Holder(
            connection_id=self.slot.serial,
            pid=self.slot.pid,
            thread=thread_names[self.thread.name] + ("" if self.thread.is_alive() else " (ended)"),
            held=max(0.0, now - self.acquired),
            where=self.where,
            trace_id=getattr(self.observed, "trace_id", None),
        )


class Loan(Checkout):
    """A checkout that is returned by a call, maybe in another thread: of ``getconn``, or of an instrumented pool."""

    # These are read for each such checkout. A slot in the record is faster to read than a default on the class.
    __slots__ = (
        "block",
        "error_type",
        "flagged",
        "heard",
        "observed",
        "queued",
        "retries",
    )

    heard: bool
    """Whether the observer is notified of this checkout; set by instrumented pools."""


def begin(started: float, stack: Stack) -> Loan:
    """Create the record of a checkout that is returned by a call.

    This is a function because an ``__init__`` would double the cost.
    """
    loan = Loan()
    loan.started = started
    loan.stack = stack
    loan.thread = thread_cache.here.thread
    loan.path = loan.observed = loan.queued = loan.error_type = None
    loan.block = loan.flagged = False
    loan.retries = 0
    return loan
