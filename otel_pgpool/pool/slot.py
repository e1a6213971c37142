"""A place in the pool for one physical connection, from the decision to connect until the connection is closed."""

from __future__ import annotations

import math
import weakref
from typing import TYPE_CHECKING, Any

from otel_pgpool.driver.proxy import unwrapped

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg2.extensions import connection

    from otel_pgpool.pool.checkout import Checkout

NEVER = math.inf
AT_ONCE = -math.inf


class Slot:
    """A connection of the pool, or the place reserved for one that is being opened.

    An idle slot owns its connection. While the connection is checked out, ``conn`` is None and only the weak reference
    ``ref`` is left: the holder has the only strong reference, so that the pool notices when the holder drops it.
    """

    __slots__ = (
        "asked_by",
        "baseline",
        "checkout",
        "conn",
        "doom",
        "expires",
        "hold_seconds",
        "idle_checkouts",
        "key",
        "on_drop",
        "origin",
        "pid",
        "ref",
        "returned",
        "review_at",
        "seen",
        "serial",
    )

    ref: weakref.ref[connection]

    def __init__(self, asked_by: Checkout | None = None) -> None:
        self.asked_by = asked_by  # the checkout that waits for this connection
        self.serial = 0  # 1 for the pool's first connection
        self.conn: connection | None = None
        self.checkout: Checkout | None = None  # the checkout that holds the connection
        self.idle_checkouts = 0  # this total and the next are changed by the holder only, hence without the lock
        self.hold_seconds = 0.0
        self.key = 0  # id of the connection
        self.on_drop: Callable[[weakref.ref[connection]], None] | None = (
            None  # called if the holder dropped the connection
        )
        self.pid = 0
        self.origin: tuple[Any, ...] = ()  # psycopg2's settings before `configure`
        self.baseline: tuple[Any, ...] = ()  # psycopg2's settings after `configure`, which a return restores
        self.seen = AT_ONCE  # when the connection was last known to be alive
        self.returned = AT_ONCE  # when it was last returned, if later than `seen`
        self.expires = NEVER
        self.review_at = NEVER  # from when on a return calls `_review`: the end of the lifetime, or at once
        self.doom: str | None = None  # the reason, if the slot is marked for eviction

    @property
    def idle_since(self) -> float:
        """When the connection became idle."""
        return max(self.seen, self.returned)

    @property
    def is_lent(self) -> bool:
        """Whether a checkout holds the connection: it has not released, and the connection was taken from the slot."""
        return self.conn is None and self.checkout is not None and hasattr(self.checkout, "lent")

    def tie(self, conn: connection) -> None:
        """Track the connection by a weak reference, so that `on_drop` is called if the holder drops it.

        The garbage collector also clears the reference to a connection in a generator that it is about to close,
        although the generator may then return the connection. Such a return has to track the connection again, which
        `review_at` ensures.
        """
        self.ref = weakref.ref(
            unwrapped(conn), self._dropped
        )  # unwrapped, because a cursor refers to the connection and not to its proxy

    def holds(self, conn: connection) -> bool:
        """Return whether a connection is this slot's.

        If the garbage collector has cleared the weak reference to a connection that survived, the connection is tracked
        again.
        """
        held = self.ref()
        if held is None and not conn.closed and conn.get_backend_pid() == self.pid:
            self.tie(conn)
            return True
        return held is conn or held is unwrapped(conn)

    def _dropped(self, ref: weakref.ref[connection]) -> None:
        """Note that the holder dropped the connection. A finalizer, so it does nothing else."""
        self.review_at = AT_ONCE
        if self.on_drop is not None:
            self.on_drop(ref)

    def condemn(self, reason: str) -> None:
        """Mark the slot for eviction at its return. The caller holds the pool's lock."""
        self.doom = reason
        self.review_at = AT_ONCE
