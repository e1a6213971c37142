"""Read-only views of the pool's own records, for observers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence

    from otel_pgpool.database_state import DatabaseState
    from otel_pgpool.stats import Holder
    from otel_pgpool.types import OutcomeName, PathName


class ObservedTask(Protocol):
    """An asyncio task that has asked for a connection."""

    @property
    def name(self) -> str:
        """Name that the task had at that moment."""


class ObservedSlot(Protocol):
    """The place of one connection in a pool, from the connect to the discard."""

    @property
    def serial(self) -> int:
        """Number of the connection within its pool; 1 is the first one that the pool opened."""

    @property
    def pid(self) -> int:
        """Process id of the connection's backend (``pg_backend_pid()``)."""


class ObservedAttempt(Protocol):
    """A failed attempt within a checkout: a dead connection, or a failed connect."""

    @property
    def at(self) -> float:
        """When the attempt ended."""

    @property
    def error_type(self) -> str:
        """SQLSTATE of its error, or else the name of the error's class."""

    @property
    def delay(self) -> float:
        """Seconds until the next attempt."""

    @property
    def message(self) -> str:
        """Text of the error, free of secrets."""


class ObservedBlocker(Protocol):
    """A hold that was in progress when a checkout queued."""

    @property
    def observer_data(self) -> Any:
        """The observer's data of the checkout that holds."""

    @property
    def connection_id(self) -> int:
        """Number of the connection within its pool."""

    @property
    def pid(self) -> int:
        """Process id of the connection's backend."""

    @property
    def held(self) -> float:
        """Seconds that the hold had lasted."""

    @property
    def path_to(self) -> str:
        """The call sites of the hold's checkout, one line for each frame, innermost first."""


class ObservedCheckout(Protocol):
    """One checkout. Times are readings of ``time.monotonic`` in seconds.

    The object changes while the checkout goes on. An observer may set `observer_data`, and nothing else.
    """

    observer_data: Any
    """Data of the observer; None until it sets some. Its attribute ``trace_id``, if there is one, shows in `Holder`."""

    @property
    def started(self) -> float:
        """When the caller asked for a connection."""

    @property
    def queued(self) -> float | None:
        """When the checkout queued; None if it did not."""

    @property
    def acquired(self) -> float:
        """When the connection was handed out; not set before, like `slot`."""

    @property
    def released(self) -> float:
        """When the connection was released or the checkout failed; not set before, like `outcome`."""

    @property
    def path(self) -> PathName | None:
        """How the connection was acquired; None until the hand-over."""

    @property
    def expected_path(self) -> PathName:
        """The path that the checkout would have if it were served now."""

    @property
    def outcome(self) -> OutcomeName:
        """How the checkout ended."""

    @property
    def error_type(self) -> str | None:
        """``error.type`` of what failed in the pool's own work: the wait, a connect, a commit or a rollback."""

    @property
    def error_message(self) -> str:
        """Text of that error, free of secrets."""

    @property
    def retries(self) -> int:
        """Number of failed attempts within the checkout."""

    @property
    def attempts(self) -> Sequence[ObservedAttempt]:
        """The failed attempts."""

    @property
    def blockers(self) -> Sequence[ObservedBlocker]:
        """The longest holds that were in progress when the checkout queued, if it had `observer_data` then."""

    @property
    def slot(self) -> ObservedSlot:
        """The place of the connection."""

    @property
    def block(self) -> bool:
        """Whether a ``with pool.connection()`` has asked, rather than a call such as ``getconn``."""

    @property
    def thread(self) -> threading.Thread:
        """The thread that has asked for the connection."""

    @property
    def task(self) -> ObservedTask | None:
        """The task that has asked, if the pool is an instrumented one of asyncio."""

    @property
    def where(self) -> str:
        """The innermost call site of the checkout, as ``file:line function``."""

    @property
    def path_to(self) -> str:
        """The call sites of the checkout, one line for each frame, innermost first."""

    @property
    def is_held(self) -> bool:
        """Whether the checkout holds its connection."""

    @property
    def expected_hold(self) -> float | None:
        """Seconds that the hold may last, infinite for any duration; None for the pool's ``long_hold``."""

    @property
    def flagged(self) -> bool:
        """Whether the hold has passed its threshold."""

    @property
    def had_proxy_wait(self) -> bool:
        """Whether PgBouncer has sent a notice that a query waits for a connection to the server."""

    @property
    def database_state(self) -> DatabaseState | None:
        """The server's last answer about the session of this long hold; None if it was not asked."""

    def holder(self, now: float) -> Holder:
        """Return a description of the hold in progress, at a reading of the clock."""
