"""The records of a pool: a `Slot` for each physical connection, and a `Checkout` for each checkout.

The two refer to each other, so they stand in one file.

The life of a checkout::

    REQUESTED ---> HELD ---> ENDED ---> REPORTED
        |                      ^
        +----------------------+

    REQUESTED   the checkout has begun: an idle connection is checked, or the caller waits in the queue
    HELD        the checkout has a connection: `Checkout.is_held`
    ENDED       the connection was released or dropped, or the checkout failed
    REPORTED    the observer was notified of the end, if there is one: `Checkout.is_reported`

A checkout leaves HELD by one atomic step, `release_once`. The ``outcome`` is set before that step, or before a failure
is counted: `Checkout.has_outcome`.

An interrupt can hit at any line: Ctrl-C, or an exception that a signal handler or another thread raises into this
thread. The interrupted code cannot tell which of its steps were done. Therefore each level of an acquire or a release
catches the interrupt, reads from the checkout which steps are done, does the remaining ones, and raises the interrupt
again. `Acquirer.record_failure` completes an acquire, `Releaser.finish_interrupted` a release, and
`SlotTable.collect_orphans` removes a slot that no level could release.
"""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from otel_pgpool.driver.proxy import unwrapped
from otel_pgpool.pool.call_site import Stack, describe, path_to, places
from otel_pgpool.runtime import thread_cache
from otel_pgpool.runtime.text import thread_names
from otel_pgpool.stats import Holder

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

    from psycopg2.extensions import connection

    from otel_pgpool.database_state import DatabaseState
    from otel_pgpool.runtime.tasks import TaskReference
    from otel_pgpool.types import OutcomeName, PathName

NEVER = math.inf
AT_ONCE = -math.inf

ACQUIRED = attrgetter("acquired")
"""The order of holds: the longest first."""


@dataclass(eq=False, repr=False, slots=True)
class Slot:
    """A connection of the pool, or the place reserved for one that is being opened.

    An idle slot owns its connection. While the connection is checked out, ``conn`` is None and only the weak reference
    ``ref`` is left: the holder has the only strong reference, so that the pool notices when the holder drops it.
    """

    asked_by: Checkout | None = None  # the checkout that waits for this connection
    serial: int = 0  # 1 for the pool's first connection
    conn: connection | None = None
    checkout: Checkout | None = None  # the checkout that holds the connection
    idle_checkouts: int = 0  # this total and the next are changed by the holder only, hence without the lock
    hold_seconds: float = 0.0
    key: int = 0  # id of the connection
    on_collected: Callable[[weakref.ref[connection]], None] | None = None  # called if the holder dropped the connection
    pid: int = 0
    server: tuple[str, int | None] | None = None  # host and port, if the pool's arguments name several
    local_port: int = 0  # port of this end of the connection; 0 for a Unix socket, or if unknown
    origin: tuple[Any, ...] = ()  # psycopg2's settings before `configure`
    baseline: tuple[Any, ...] = ()  # psycopg2's settings after `configure`; a `Renamed` during a trace's name
    kept_at: float = AT_ONCE  # when a thread that opens it, or has set it aside, last began to work on it or on others
    seen: float = AT_ONCE  # when the connection was last known to be alive
    returned: float = AT_ONCE  # when it was last released, if later than `seen`
    pinged: float = AT_ONCE  # when the pool has last pinged it for `keepalive`, which is no use of it
    ping_after: float = NEVER  # seconds without use after which it is pinged
    connect_began: float = NEVER  # when its connect began
    opened: float = NEVER  # when it was opened
    lifetime_share: float = 1.0  # the part of `max_lifetime` after which it expires
    expires: float = NEVER
    review_at: float = NEVER  # when a release first calls `_evict_reason`: at the end of the lifetime, or at once
    evict_reason: str | None = None  # the reason, if the slot is marked for eviction
    ref: weakref.ref[connection] = field(init=False)

    @property
    def idle_since(self) -> float:
        """When the connection became idle."""
        return max(self.seen, self.returned)

    @property
    def ping_due(self) -> float:
        """When the idle connection is to be pinged."""
        return max(self.idle_since, self.pinged) + self.ping_after

    @property
    def is_held(self) -> bool:
        """Whether a checkout holds the connection: the slot has none, and the checkout has not released it."""
        checkout = self.checkout  # read once: a release, which takes no lock, may remove it
        return self.conn is None and checkout is not None and checkout.is_held

    def track(self, conn: connection) -> None:
        """Track the connection by a weak reference, so that `on_collected` is called if the holder drops it.

        The garbage collector also clears the reference to a connection in a generator that it is about to close,
        although the generator may then release the connection. Such a release has to track the connection again;
        `review_at` ensures that.
        """
        # Unwrapped, because a cursor refers to the connection and not to its proxy.
        self.ref = weakref.ref(unwrapped(conn), self._dropped)

    def holds(self, conn: connection) -> bool:
        """Return whether a connection is this slot's.

        If the garbage collector has cleared the weak reference to a connection that survived, the connection is tracked
        again.
        """
        held = self.ref()
        if held is None and not conn.closed and conn.get_backend_pid() == self.pid:
            self.track(conn)
            return True
        return held is conn or held is unwrapped(conn)

    def _dropped(self, ref: weakref.ref[connection]) -> None:
        """Note that the holder dropped the connection. A finalizer, so it does nothing else."""
        self.review_at = AT_ONCE
        if self.on_collected is not None:
            self.on_collected(ref)

    def note_proxy_wait(self) -> None:
        """Note that a proxy let a query of the checkout wait that has the connection, or has asked for it."""
        checkout = self.checkout or self.asked_by
        if checkout is not None:
            checkout.had_proxy_wait = checkout.is_remarkable = True

    def mark_for_eviction(self, reason: str) -> None:
        """Mark the slot for eviction at its release. The caller holds the pool's lock."""
        self.evict_reason = reason
        self.review_at = AT_ONCE


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

    observer_data: Any
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
        return cls(hold.observer_data, slot.serial, slot.pid, max(0.0, now - hold.acquired), hold.stack)

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
        "end_reported",
        "held",
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
    """Call sites of the checkout."""
    thread: threading.Thread
    """The thread that asked for the connection."""
    path: PathName | None
    """How the connection was acquired: ``idle``, ``queued`` or ``new``; None until the hand-over."""
    slot: Slot
    """The slot of the connection; set at the hand-over, like ``acquired``."""
    acquired: float
    held: bool
    """Present, and True, while the checkout holds the connection; deleting it is the atomic step of a release."""
    end_reported: bool
    """Present, and True, once the observer was notified of the checkout's end."""
    released: float
    """When the connection was released or the checkout failed; set at that moment, like ``outcome``."""
    outcome: OutcomeName

    # Defaults of the attributes that few checkouts set. They are on the class, so that the other checkouts need not set
    # them.
    task: TaskReference | None = None  # the task that asked for the connection, if the pool is one for asyncio
    caller: int | None = None  # key of this checkout's connects; None: the identity of the thread
    caller_name: str | None = None  # value of the metrics' attribute; None if it is not reported, or not known yet
    block: bool = True
    """Whether the checkout belongs to ``with pool.connection()``, inside which its span is the current one."""
    observer_data: Any = None
    """Data of the observer."""
    trace_name: str | None = None
    """The name that the session gets on the server; None if it keeps its own."""
    expected_path: PathName = "idle"
    """The path that the checkout would have if it were served now."""
    queued: float | None = None
    blockers: Sequence[Blocker] = ()
    retries: int = 0
    attempts: Sequence[Attempt] = ()
    error: BaseException | None = None
    """The error of the last failed attempt."""
    expected_hold: float | None = None
    """Seconds that the hold may last, infinite for any duration; None for the pool's ``long_hold``."""
    is_remarkable: bool = False
    """Whether the observer has to report a long or an expected hold, or a wait in a proxy, at the release."""
    flagged: bool = False
    """Whether the hold has passed its threshold."""
    flagged_at: float = 0.0
    long_hold_reported: bool = False
    """Whether the observer has reported the long hold."""
    blocks_inside: int = 0
    """Number of blocks inside its block that have used the same connection."""
    had_proxy_wait: bool = False
    """Whether PgBouncer has sent a notice that a query waits for a connection to the server."""
    database_state: DatabaseState | None = None
    """What the server said last of the session of this long hold, if a monitor has asked it."""
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
    def is_held(self) -> bool:
        """Whether the checkout holds its connection."""
        return hasattr(self, "held")

    @property
    def has_outcome(self) -> bool:
        """Whether the outcome is set."""
        return hasattr(self, "outcome")

    @property
    def is_reported(self) -> bool:
        """Whether the observer was notified of the checkout's end, or need not be."""
        return hasattr(self, "end_reported")

    @property
    def where(self) -> str:
        """The innermost call site of the checkout, as ``file:line function``."""
        return next(map(describe, places(self.stack)), "")

    @property
    def path_to(self) -> str:
        """The call sites of the checkout as text, one line for each frame, innermost first."""
        return path_to(self.stack)

    def holder(self, now: float) -> Holder:
        """Return a `Holder`, which describes the hold to users."""
        return Holder(
            connection_id=self.slot.serial,
            pid=self.slot.pid,
            thread=thread_names[self.thread.name] + ("" if self.thread.is_alive() else " (ended)"),
            held=max(0.0, now - self.acquired),
            where=self.where,
            trace_id=getattr(self.observer_data, "trace_id", None),
            task=None if self.task is None else str(self.task),
            database_state=self.database_state,
        )

    def is_by_holder_of(self, other: Checkout) -> bool:
        """Return whether the task, or else the thread, of another checkout has asked for this connection too."""
        return self.thread is other.thread and self.task == other.task


def release_once(checkout: Checkout) -> bool:
    """End a hold; return False if it has ended before. Only one of several threads gets True.

    The hot path of a release repeats the two lines of this function, because a call would cost more.
    """
    try:
        del checkout.held
    except AttributeError:
        return False
    return True


class ManualCheckout(Checkout):
    """A checkout by ``getconn`` or from an instrumented pool: a call releases it, maybe in another thread."""

    # These are read for each such checkout. A slot in the record is faster to read than a default on the class.
    __slots__ = ("block", "error_type", "flagged", "is_observed", "observer_data", "queued", "retries")

    is_observed: bool
    """Whether the observer is notified of this checkout; set by instrumented pools."""


def begin(started: float, stack: Stack) -> ManualCheckout:
    """Create the record of a checkout that a call of `putconn` releases. An ``__init__`` would double the cost."""
    checkout = ManualCheckout()
    checkout.started = started
    checkout.stack = stack
    checkout.thread = thread_cache.here.thread
    checkout.path = checkout.observer_data = checkout.queued = checkout.error_type = None
    checkout.block = checkout.flagged = False
    checkout.retries = 0
    return checkout
