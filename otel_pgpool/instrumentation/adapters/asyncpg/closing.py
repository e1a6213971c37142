"""The reason for which a connection was closed, found by the functions that closed it.

Every end of a connection runs ``Connection._cleanup``, and only the callers of that method differ. Neither the
connection nor its pool keeps a reason, and a wrapper around each caller would cost the checkouts that close nothing.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from otel_pgpool.instrumentation.adapters.asyncpg import private
from otel_pgpool.types import DiscardReason, Outcome

if TYPE_CHECKING:
    from types import CodeType, FrameType

ASYNCPG_MODULES = ("asyncpg.connection", "asyncpg.pool")
"""Modules that close a connection for their own reasons."""

PLANNED_REASONS = (DiscardReason.IDLE, DiscardReason.EXPIRED, DiscardReason.DRAINED)
"""Reasons for which a pool closes a connection that could still be used."""


class Closing(NamedTuple):
    """Why a connection was closed."""

    reason: DiscardReason
    error: BaseException | None = None
    """The error that was the cause: that of a callback of the application, or of the reset."""

    @property
    def outcome(self) -> Outcome:
        """How the hold ended, if the connection was held."""
        return Outcome.RELEASED if self.reason in PLANNED_REASONS else Outcome.DISCARDED


def closing_of(pool: Any, con: Any, frame: FrameType, *, is_held: bool) -> Closing:
    """Return why a connection is being closed.

    Args:
        pool: the pool; None if it was collected.
        con: the connection.
        frame: the frame that has called ``_cleanup``.
        is_held: whether a checkout holds the connection.
    """
    if frame.f_code not in (private.CLOSE, private.TERMINATE):  # the event loop: the connection was lost
        return Closing(DiscardReason.BROKEN)
    closer = frame.f_back
    code = None if closer is None else closer.f_code
    if closer is not None and code is private.RELEASE:
        return _closing_at_release(closer.f_locals["self"], con)
    if code is private.ACQUIRE:  # the callback `setup` has raised
        return Closing(DiscardReason.CHECK_FAILED, sys.exc_info()[1])
    if pool is None or private.is_closing(pool) or _is_called_by(closer, private.POOL_TERMINATE):
        reason = DiscardReason.CLOSED
    elif code is private.DEACTIVATE:
        reason = DiscardReason.IDLE
    elif (
        closer is not None
        and code is not private.PROXY_TERMINATE
        and closer.f_globals.get("__name__") in ASYNCPG_MODULES
    ):
        reason = DiscardReason.BROKEN
    else:
        reason = DiscardReason.RETURNED_CLOSED if is_held else DiscardReason.DRAINED
    return Closing(reason)


def is_finalizer(frame: FrameType) -> bool:
    """Return whether a finalizer closes a connection, because the connection is collected."""
    return _is_called_by(frame, private.FINALIZE)


def _is_called_by(frame: FrameType | None, code: CodeType | None) -> bool:
    return frame is not None and frame.f_back is not None and frame.f_back.f_code is code


def _closing_at_release(holder: Any, con: Any) -> Closing:
    if private.has_made_max_queries(holder, con):
        return Closing(DiscardReason.EXPIRED)
    if private.is_outdated(holder):
        return Closing(DiscardReason.DRAINED)
    error = sys.exc_info()[1]
    return Closing(DiscardReason.BROKEN if error is None else DiscardReason.RESET_FAILED, error)
