"""Contexts with a checkout's span, created at half the usual cost, and detached in any thread and order."""

from __future__ import annotations

import contextvars
from typing import Any

from opentelemetry import context

from otel_pgpool.telemetry.sdk_internals import SPAN_KEY


class ContextWithSpan(context.Context):
    """The context that is current in the block of a checkout."""

    __slots__ = ("before", "is_over")

    before: context.Context
    """The caller's context."""
    is_over: bool
    """Whether the block was left while another context was current; `leave_ended` then returns to `before`."""

    @classmethod
    def of(cls, caller: context.Context, span: Any) -> ContextWithSpan:
        """Create the context of a checkout's span."""
        made = cls({**caller, SPAN_KEY: span})
        made.before = caller
        made.is_over = False
        return made


def leave_ended() -> context.Context:
    """Leave the contexts of blocks that have ended, maybe in another thread; return the then current context."""
    found = current = context.get_current()
    while type(current) is ContextWithSpan and current.is_over:
        current = current.before
    if current is not found:
        context.attach(current)
    return current


def detach(token: Any, attached: context.Context | None) -> None:
    """Undo an ``attach`` if its context is still current; otherwise mark the context for `leave_ended`.

    A block may be left in another thread or context than it was entered in, where ``opentelemetry.context.detach``
    would log an error, or out of order, where it would restore the wrong context. Both are common with generators.
    """
    try:
        _detach(token, attached)
    except BaseException:
        _detach(token, attached)  # again, because an interrupt may have cut the first call short
        raise


def _detach(token: Any, attached: context.Context | None) -> None:
    if context.get_current() is not attached:
        if type(attached) is ContextWithSpan:
            attached.is_over = True
        return
    if isinstance(token, contextvars.Token):
        try:
            token.var.reset(token)
        except (ValueError, RuntimeError):  # attached in another contextvars.Context, of which this one is a copy
            if type(attached) is ContextWithSpan:
                attached.is_over = True
    else:
        context.detach(token)
    leave_ended()
