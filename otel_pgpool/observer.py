"""The interface of observers, which a pool notifies of its events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otel_pgpool.database_state import DatabaseState
    from otel_pgpool.observed import ObservedCheckout, ObservedSlot
    from otel_pgpool.stats import LastFigures, PoolStats
    from otel_pgpool.types import LevelName, ReasonName


class Server(Protocol):
    """The server and the database that a pool connects to."""

    @property
    def address(self) -> str:
        """Host of the server, or the folder of its Unix socket; empty if unknown."""

    @property
    def port(self) -> int | None:
        """Port of the server; None if unknown, or if several hosts have different ports."""

    @property
    def namespace(self) -> str:
        """Name of the database; empty if unknown."""


class ObservedPool(Server, Protocol):
    """The part of a pool that its observer may use. No method or property takes a lock."""

    @property
    def name(self) -> str:
        """Name of the pool, unique among the live pools of this process."""

    @property
    def long_hold(self) -> float:
        """Threshold of a long hold in seconds; infinite if it is switched off."""

    @property
    def closed(self) -> bool:
        """True once the pool is closed; the levels of a closed pool are not reported."""

    @property
    def last_figures(self) -> LastFigures:
        """Container in which the pool stores its figures when it is collected."""

    def stats(self) -> PoolStats:
        """Return the pool's levels and totals."""

    def held_checkouts(self) -> Sequence[ObservedCheckout]:
        """Return the checkouts that hold a connection at this moment."""


ARGUMENTS = "connect"
"""The name that stands for the arguments of a connect in the place of a callback's."""


@dataclass(frozen=True)
class Connect:
    """One attempt to open a physical connection. Times are readings of ``time.monotonic`` in seconds."""

    attempt: int
    """1, or the number of this attempt since the server became unreachable."""
    began: float
    ended: float
    asked_by: ObservedCheckout | None
    """The checkout that waits for this connection; None if the pool opens it to reach ``minconn``."""
    error: BaseException | None = None
    message: str = ""
    """Text of the error, free of secrets."""
    address: str | None = None
    port: int | None = None
    is_refusal: bool = False
    """Whether the attempt failed although the server is up: it refused, or a callback raised on the connection."""
    callback: str = ""
    """Name of the program's callback that raised; `ARGUMENTS` if the connect's arguments are wrong; empty if neither.

    A `ConnectionPool` sets it for ``configure`` only.
    """


class SessionNames(Protocol):
    """The part of an observer that names sessions on the server. A `PoolObserver` need not have it.

    The pool logs an error that a method raises, and then uses no name of the observer's.
    """

    def service_name(self) -> str | None:
        """Return the name of the service that the pool's connections belong to; None for the environment's."""

    def traceparent(self, checkout: ObservedCheckout) -> str | None:
        """Return the ``traceparent`` of a checkout's span; None if there is no span (yet), or none that is sampled.

        Called after ``started``, and only with ``OTEL_PGPOOL_APPLICATION_NAME=trace``.
        """


class PoolObserver(Protocol):
    """The interface of an observer, which the pool notifies of its events.

    The pool calls each method in the thread in which the event happened, and never under the pool's lock. It logs an
    error that a method raises, and does not pass it on to the application; only an error of ``attached`` leaves the
    pool's constructor. For each checkout the pool calls ``started``, then ``failed``, or ``acquired`` and ``released``.
    """

    def attached(self, pool: ObservedPool) -> None:
        """Receive the pool, before any other call, and again in a forked child; keep no strong reference to it."""

    def started(self, checkout: ObservedCheckout) -> None:
        """Handle the start of a checkout: a caller asks for a connection."""

    def acquired(self, checkout: ObservedCheckout) -> None:
        """Handle the hand-over of a connection to a checkout."""

    def failed(self, checkout: ObservedCheckout, error: BaseException) -> None:
        """Handle the end of a checkout that received no connection because of ``error``."""

    def released(self, checkout: ObservedCheckout) -> None:
        """Handle the release of a connection; `ObservedCheckout.outcome` is how the hold ended."""

    def abandoned(self, checkout: ObservedCheckout) -> None:
        """Handle the end of a checkout without a release.

        An earlier call has released the connection, or the connection belongs to the parent process of a fork.
        """

    def reclaimed(self, checkout: ObservedCheckout) -> None:
        """Handle a connection that its holder dropped, and that the pool has reclaimed."""

    def held_long(self, checkout: ObservedCheckout) -> None:
        """Handle a hold that has just passed its threshold. The hold may end, or have ended, during this call."""

    def connected(self, connect: Connect) -> None:
        """Handle a successful attempt to open a connection."""

    def connect_failed(self, connect: Connect) -> None:
        """Handle a failed attempt to open a connection."""

    def discarded(
        self,
        slots: Sequence[ObservedSlot],
        reason: ReasonName,
        error: BaseException | None,
        checkout: ObservedCheckout | None,
    ) -> None:
        """Handle connections that the pool has closed together for one ``reason``.

        Args:
            slots: the slots of the closed connections.
            reason: why the pool closed them.
            error: the error that revealed the reason, if there was one.
            checkout: the checkout that held one of the connections or found one of them dead, if there was one.
        """

    def outage_started(self, connect: Connect) -> None:
        """Handle the start of an outage: the first failed attempt since the server was last reached."""

    def outage_ended(self, attempts: int, duration: float) -> None:
        """Handle the end of an outage after ``attempts`` failed attempts and ``duration`` seconds."""

    def utilization_changed(self, level: LevelName, stats: PoolStats) -> None:
        """Handle a lasting change of the utilization level: ``normal``, ``high`` or ``critical``."""


class DatabaseObserver(PoolObserver, Protocol):
    """The interface of an observer that is also told what the server says of long holds."""

    def database_state(
        self, checkout: ObservedCheckout, state: DatabaseState, blockers: Sequence[ObservedCheckout]
    ) -> None:
        """Handle what the server says of a long hold in progress; called again when the hold's age has doubled.

        Args:
            checkout: the checkout that holds the connection.
            state: the state of its session.
            blockers: the checkouts of this process, of any pool, whose sessions block it.
        """


class BaseObserver:
    """An observer that does nothing: a base class for those that handle some events only.

    Its methods are those of `PoolObserver`. Add ``database_state`` to be a `DatabaseObserver` too.
    """

    def attached(self, pool: ObservedPool) -> None:
        """Do nothing."""

    def started(self, checkout: ObservedCheckout) -> None:
        """Do nothing."""

    def acquired(self, checkout: ObservedCheckout) -> None:
        """Do nothing."""

    def failed(self, checkout: ObservedCheckout, error: BaseException) -> None:
        """Do nothing."""

    def released(self, checkout: ObservedCheckout) -> None:
        """Do nothing."""

    def abandoned(self, checkout: ObservedCheckout) -> None:
        """Do nothing."""

    def reclaimed(self, checkout: ObservedCheckout) -> None:
        """Do nothing."""

    def held_long(self, checkout: ObservedCheckout) -> None:
        """Do nothing."""

    def connected(self, connect: Connect) -> None:
        """Do nothing."""

    def connect_failed(self, connect: Connect) -> None:
        """Do nothing."""

    def discarded(
        self,
        slots: Sequence[ObservedSlot],
        reason: ReasonName,
        error: BaseException | None,
        checkout: ObservedCheckout | None,
    ) -> None:
        """Do nothing."""

    def outage_started(self, connect: Connect) -> None:
        """Do nothing."""

    def outage_ended(self, attempts: int, duration: float) -> None:
        """Do nothing."""

    def utilization_changed(self, level: LevelName, stats: PoolStats) -> None:
        """Do nothing."""
