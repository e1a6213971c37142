"""Contexts that hold a checkout's span: made at half the price, and left wherever that happens."""

from __future__ import annotations

import contextvars
from typing import Any

from opentelemetry import context
from opentelemetry.trace import INVALID_SPAN, set_span_in_context

SPAN_KEY = next(iter(set_span_in_context(INVALID_SPAN, context.Context())), "")
"""Where a context holds its span, which has no public name. ``Context({**caller, SPAN_KEY: span})`` is what
``set_span_in_context`` gives, without its three calls and two copies."""


def detach(token: Any, attached: context.Context | None) -> None:
    """Undo an ``attach``, if what it attached is still current; otherwise it is not this block's to leave.

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
        return
    if isinstance(token, contextvars.Token):
        try:
            token.var.reset(token)
        except (ValueError, RuntimeError):
            return
    else:
        context.detach(token)
