"""A place in the pool for one physical connection, from the decision to connect until it is closed."""

from __future__ import annotations

import math
import weakref
from typing import TYPE_CHECKING, Any

from otel_pgpool._proxy import unwrapped

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg2.extensions import connection

    from otel_pgpool._checkout import Checkout

NEVER = math.inf
AT_ONCE = -math.inf


class Slot:
    """One connection, or the place kept for it while it is being made.

    While idle the slot owns its connection. While lent, ``conn`` is None and only the weak ``ref`` is left: the
    borrower's reference is the only strong one, so that a dropped connection is noticed.
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
        self.asked_by = asked_by  # the checkout whose wait wants it
        self.serial = 0  # 1 for the pool's first connection
        self.conn: connection | None = None
        self.checkout: Checkout | None = None  # whom it is lent to
        self.idle_checkouts = 0  # served from idle; like the next, counted where the borrower is alone
        self.hold_seconds = 0.0
        self.key = 0  # id of the connection
        self.on_drop: Callable[[weakref.ref[connection]], None] | None = None  # told when the borrower dropped it
        self.pid = 0
        self.origin: tuple[Any, ...] = ()  # psycopg2's settings before `configure`
        self.baseline: tuple[Any, ...] = ()  # those after it, which a return restores
        self.seen = AT_ONCE  # when it was last known to live
        self.returned = AT_ONCE  # when it last came back, where that is later
        self.expires = NEVER
        self.review_at = NEVER  # when a return must ask whether it may stay: at the end of its lifetime, or at once
        self.doom: str | None = None  # why it must go

    @property
    def idle_since(self) -> float:
        """When it became idle."""
        return max(self.seen, self.returned)

    @property
    def is_lent(self) -> bool:
        """Whether a borrower has it: its checkout goes on, and the connection has been taken from here."""
        return self.conn is None and self.checkout is not None and hasattr(self.checkout, "lent")

    def tie(self, conn: connection) -> None:
        """Notice when it is dropped.

        The collector tells so also of a connection in a generator that it is about to close, and that will then be
        returned after all: such a return must tie it again, and `review_at` sees to that.
        """
        self.ref = weakref.ref(unwrapped(conn), self._dropped)  # a cursor refers to this one, and not to its proxy

    def holds(self, conn: connection) -> bool:
        """Whether this is the slot's connection, though the collector may have declared it dead."""
        held = self.ref()
        if held is None and not conn.closed and conn.get_backend_pid() == self.pid:
            self.tie(conn)
            return True
        return held is conn or held is unwrapped(conn)

    def _dropped(self, ref: weakref.ref[connection]) -> None:
        """A finalizer: it only takes notes."""
        self.review_at = AT_ONCE
        if self.on_drop is not None:
            self.on_drop(ref)

    def condemn(self, reason: str) -> None:
        """Let it be closed when it comes back. The caller holds the pool's lock."""
        self.doom = reason
        self.review_at = AT_ONCE
