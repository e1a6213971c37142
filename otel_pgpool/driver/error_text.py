"""The part of an error that may be shown, and the part of its object that is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import psycopg2

from otel_pgpool.driver.messages import known
from otel_pgpool.errors import sqlstate
from otel_pgpool.runtime.text import LONGEST_TEXT, class_of, cut, printable, text_of

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

    The message consists of the parts of a psycopg2 error's text that `known` passes. The pool's own errors are psycopg2
    errors too.
    """
    if not isinstance(error, psycopg2.Error):
        return ""
    if sqlstate(error) is None:
        return printable(known(text_of(error), target.public))
    if _is_raised_by_a_function(error):
        return ""
    constraint = error.diag.constraint_name
    public = target.public if constraint is None else {*target.public, constraint}
    return printable(known(error.diag.message_primary or "", public))


def _is_raised_by_a_function(error: psycopg2.Error) -> bool:
    """Return whether a procedural language raised the error, with any text and SQLSTATE.

    Its ``source_file`` is then PostgreSQL's pl_exec.c, plpy_elog.c or plperl.c.
    """
    return (error.diag.source_file or "pl").startswith("pl")


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
