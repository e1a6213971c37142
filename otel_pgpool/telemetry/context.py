"""Leaving a context, wherever that happens."""

from __future__ import annotations

import contextvars
from typing import Any

from opentelemetry import context


def detach(token: Any) -> None:
    """Undo an ``attach``; where the block is left in another thread or context than it was entered, do nothing.

    ``opentelemetry.context.detach`` would log an error there, and a generator that is closed by the garbage collector
    makes it common.
    """
    if isinstance(token, contextvars.Token):
        try:
            token.var.reset(token)
        except (ValueError, RuntimeError):
            return
    else:
        context.detach(token)
