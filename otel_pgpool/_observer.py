"""What the pool tells: its state when asked (`PoolStats`, `Holder`), its deeds as they happen (`PoolObserver`)."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from otel_pgpool._fork import is_here

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from otel_pgpool._checkout import Checkout
    from otel_pgpool._slot import Slot

HIGH_UTILIZATION = 0.80
CRITICAL_UTILIZATION = 0.95


@dataclass(frozen=True)
class PoolStats:
    """A pool at one moment: levels, and totals since it was made (in a forked child: since the fork). Times in s."""

    name: str
    status: str
    """``new`` (not opened), ``ok``, ``high`` (80 % in use), ``critical`` (95 %), ``unreachable`` or ``closed``."""
    minconn: int
    maxconn: int
    """0 where a pool that is not ours has no limit; then ``utilization`` is 0."""
    size: int
    """Connections that count against ``maxconn``: idle, used, and those being connected, checked or closed."""
    used: int
    idle: int
    connecting: int
    waiting: int
    utilization: float
    """``used / maxconn``."""
    oldest_hold: float
    """Age of the oldest hold still out, 0 if none; without those that were given an ``expected_hold``."""

    checkouts: Mapping[str, int] = field(default_factory=dict)
    """Checkouts served, by path: ``idle``, ``queued``, ``new``."""
    queued: int = 0
    """Checkouts that had to wait in the queue, served or not."""
    timeouts: int = 0
    errors: int = 0
    """Checkouts that failed otherwise: queue full, pool closed, ``max_retries`` reached, interrupted."""
    retries: int = 0
    long_holds: int = 0
    created: int = 0
    discarded: Mapping[str, int] = field(default_factory=dict)
    """Connections closed, by reason."""
    wait_seconds: float = 0.0
    """Waits of all checkouts, served or not."""
    hold_seconds: float = 0.0
    maxidle: int | None = None
    """Most connections kept idle, where that is less than ``maxconn``, as in psycopg2's and SQLAlchemy's pools."""

    LEVELS = ("minconn", "maxconn", "size", "used", "idle", "connecting", "waiting", "utilization", "oldest_hold")

    def levels(self) -> dict[str, Any]:
        """Only what is true now, without the totals."""
        return {level: getattr(self, level) for level in self.LEVELS}

    def as_dict(self) -> dict[str, Any]:
        """All fields as plain values, and the names that older dashboards of psycopg2 pools use."""
        return asdict(self) | {
            "checkouts": dict(self.checkouts),
            "discarded": dict(self.discarded),
            "active_connections": self.used,
            "available_connections": self.idle,
            "total_connections": self.size,
            "failed_connections": self.timeouts + self.errors,
        }


@dataclass(frozen=True)
class Holder:
    """Who has held which connection for how long (s), and where it was checked out (``file:line function``)."""

    connection_id: int
    pid: int
    thread: str
    held: float
    where: str
    trace_id: str | None = None

    def __str__(self) -> str:
        """One line for messages and logs."""
        trace = f", trace {self.trace_id}" if self.trace_id else ""
        return f"{self.held:.3f} s by thread {self.thread!r} at {self.where} (pid {self.pid}{trace})"


class LastFigures:
    """The figures of a pool that is gone, for observers, which may not keep the pool itself."""

    __slots__ = ("stats",)

    def __init__(self) -> None:
        self.stats: PoolStats | None = None


def leave_figures(pool: Any) -> None:
    """Leave the figures of a pool that goes. Its finalizer: it calls nobody, and takes no lock."""
    with suppress(Exception):  # its making has failed, or the interpreter ends
        if is_here:  # in a forked child they are the parent's
            pool.last_figures.stats = pool.stats()


class ObservedPool(Protocol):
    """What an observer may ask of the pool that it was given to. None of it takes a lock."""

    @property
    def name(self) -> str:
        """Unique among the live pools of this process."""
        ...

    @property
    def address(self) -> str:
        """Host, or the folder of a Unix socket."""
        ...

    @property
    def port(self) -> int | None:
        """None where the hosts of a multi-host DSN differ in it."""
        ...

    @property
    def namespace(self) -> str:
        """Name of the database."""
        ...

    @property
    def long_hold(self) -> float:
        """Threshold in s; infinite when switched off."""
        ...

    @property
    def closed(self) -> bool:
        """True once the pool is closed: its levels are not reported any more."""
        ...

    @property
    def last_figures(self) -> LastFigures:
        """Where the pool leaves its figures when it is collected."""
        ...

    def stats(self) -> PoolStats:
        """Levels and totals."""
        ...


@dataclass(frozen=True)
class Connect:
    """One attempt at a physical connection. Times are readings of ``time.monotonic`` in s."""

    attempt: int
    """1, or the number of this attempt since the server became unreachable."""
    began: float
    ended: float
    asked_by: Checkout | None
    """The checkout whose wait asked for it; None when the pool refills."""
    error: BaseException | None = None
    message: str = ""
    """The error's text, free of secrets."""
    address: str | None = None
    port: int | None = None


class PoolObserver(Protocol):
    """Told what happens, outside the pool's lock, by the thread that did it.

    Whatever an observer raises is logged and goes no further. ``started``, ``acquired``, ``failed`` and ``released``
    come from the borrower, in this order; the rest from wherever it happened.
    """

    def attached(self, pool: ObservedPool) -> None:
        """The pool introduces itself, once, before anything else; keep no strong reference to it."""

    def started(self, checkout: Checkout) -> None:
        """A caller asks for a connection."""

    def acquired(self, checkout: Checkout) -> None:
        """It was handed one."""

    def failed(self, checkout: Checkout, error: BaseException) -> None:
        """It got none."""

    def released(self, checkout: Checkout) -> None:
        """The connection came back; `Checkout.outcome` says how."""

    def abandoned(self, checkout: Checkout) -> None:
        """A forked child left the block of a checkout that belongs to its parent."""

    def reclaimed(self, checkout: Checkout) -> None:
        """The borrower dropped the connection without giving it back."""

    def held_long(self, checkout: Checkout) -> None:
        """The hold has just passed the threshold; it may end, or have ended, at this moment."""

    def connected(self, connect: Connect) -> None:
        """A physical connection was made."""

    def connect_failed(self, connect: Connect) -> None:
        """An attempt failed."""

    def discarded(
        self, slots: Sequence[Slot], reason: str, error: BaseException | None, checkout: Checkout | None
    ) -> None:
        """Connections left the pool together for one reason; the checkout that met it, or had one of them."""

    def outage_started(self, connect: Connect) -> None:
        """The first failed attempt since the server was last reached."""

    def outage_ended(self, attempts: int, duration: float) -> None:
        """The server was reached again after ``attempts`` failures and ``duration`` s."""

    def utilization_changed(self, level: str, stats: PoolStats) -> None:
        """Utilization crossed a threshold and stayed there: ``normal``, ``high`` or ``critical``."""
