"""Contexts that hold a checkout's span: made at half the price, and left wherever that happens."""

from __future__ import annotations

import contextvars
from typing import Any

from opentelemetry import context
from opentelemetry.trace import INVALID_SPAN, set_span_in_context

SPAN_KEY = next(iter(set_span_in_context(INVALID_SPAN, context.Context())), "")
"""Where a context holds its span, which has no public name. ``{**caller, SPAN_KEY: span}`` is what
``set_span_in_context`` puts into one, without its three calls and two copies."""


class CheckoutContext(context.Context):
    """A context that the block of a checkout makes current."""

    __slots__ = ("before", "is_over")

    before: context.Context
    """Of the caller."""
    is_over: bool
    """Whether its block was left while another context was current: whoever comes back to it goes on to `before`."""

    @classmethod
    def of(cls, caller: context.Context, span: Any) -> CheckoutContext:
        """Make the context of a checkout's span."""
        made = cls({**caller, SPAN_KEY: span})
        made.before = caller
        made.is_over = False
        return made


def leave_ended() -> context.Context:
    """Return the current context, after leaving those of blocks that are over; another thread may have ended them."""
    found = current = context.get_current()
    while type(current) is CheckoutContext and current.is_over:
        current = current.before
    if current is not found:
        context.attach(current)
    return current


def detach(token: Any, attached: context.Context | None) -> None:
    """Undo an ``attach``, if what it attached is still current; otherwise whoever comes back to it undoes it.

    A block may be left in another thread or context than it was entered, where ``opentelemetry.context.detach`` would
    log an error, or out of turn, where it would bring back somebody else's context: with generators both are common.
    """
    try:
        _detach(token, attached)
    except BaseException:
        _detach(token, attached)  # an interrupt came between
        raise


def _detach(token: Any, attached: context.Context | None) -> None:
    if context.get_current() is not attached:
        if type(attached) is CheckoutContext:
            attached.is_over = True
        return
    if isinstance(token, contextvars.Token):
        try:
            token.var.reset(token)
        except (ValueError, RuntimeError):  # it is current in a copy of the context that it was attached in
            if type(attached) is CheckoutContext:
                attached.is_over = True
    else:
        context.detach(token)
    leave_ended()
