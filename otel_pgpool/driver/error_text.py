"""The part of an error that may be shown, and the part of its object that is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import psycopg2

from otel_pgpool.driver.messages import known_text
from otel_pgpool.runtime.text import LONGEST_TEXT, class_of, cut, text_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection


LONGEST_KEPT = 100_000
"""Number of characters of an error's text above which the error object is not kept as it is."""


class Quotable(Protocol):
    """The target of a connection, as far as the text of an error may show it."""

    @property
    def public(self) -> Collection[str]:
        """The names and addresses that a text may quote."""


def describe(target: Quotable, error: BaseException) -> str:
    """Return an error's message for telemetry, a bounded printable line without secrets, SQL or values; maybe empty.

    Only psycopg2's errors have a message, which includes the pool's own.
    """
    return known_text(error, target.public) if isinstance(error, psycopg2.Error) else ""


def without_traceback(error: BaseException) -> BaseException:
    """Return the error without its frames, which would keep the pool's connections alive, and without a long text."""
    text = text_of(error)
    if len(text) <= LONGEST_KEPT:
        return error.with_traceback(None)
    try:
        short = type(error)(cut(text, LONGEST_TEXT))
    except Exception:  # noqa: BLE001 - an application's own class may need other arguments
        return RuntimeError(f"{class_of(error)}: {cut(text, LONGEST_TEXT)}")
    if isinstance(short, psycopg2.Error) and isinstance(error, psycopg2.Error):
        restore: Callable[[dict[str, object]], None] = short.__setstate__
        restore({"pgcode": error.pgcode})
    return short
