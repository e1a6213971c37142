"""The texts by which a server, or libpq after a server's answer, refuses a connection."""

from __future__ import annotations

import re

from otel_pgpool.driver.messages import LONGEST_READ
from otel_pgpool.errors import sqlstate
from otel_pgpool.runtime.text import text_of

OF_THE_SERVER = ("08", "53", "57", "58", "XX")
"""Classes of SQLSTATE which mean that the server cannot serve anyone: exhausted, starting, stopping, broken."""

SEVERITY_END = ":  "
"""Separator that libpq writes after the severity of a server's error, in every language, and never in its own texts."""

NAMES = re.compile(r'"[^"]*"')
QUOTES = re.compile('["\u00ab\u00bb\u201c-\u201f\u2039\u203a\u300c-\u300f]')
"""Quotation marks of the languages of ``lc_messages``; a refusal quotes the role, database or parameter."""

FULL = re.compile(r"too many (?:clients|connections)|connection slots|no more connections", re.IGNORECASE)
"""English texts of PostgreSQL's 53300, and of PgBouncer's error for the same, whose only SQLSTATE is 08P01."""

CANNOT_SERVE = re.compile(
    r"the database system|terminating connection|out of memory|could not |cannot connect|login has been failing|"
    r"shut down|crashed|timeout",
    re.IGNORECASE,
)
"""English texts of PostgreSQL's 57P03 and similar errors, and of PgBouncer's."""

RESERVED = re.compile(r"superuser|pg_use_reserved_connections", re.IGNORECASE)
"""Texts about slots reserved for superusers; they name no role of the application, in any language."""

REFUSES = re.compile(
    r"no such (?:database|user)|auth(?:entication)? failed|certificate|unsupported|startup packet", re.IGNORECASE
)
"""Refusals that quote nothing: PgBouncer's, and some of PostgreSQL's in English."""

REFUSED_BY_CLIENT = re.compile(
    r"no password supplied|server does not support (?:SSL|GSSAPI)|authentication method requirement"
)
"""Texts with which libpq itself stops after an answer of the server."""


def refuses(error: BaseException) -> bool:
    """Return whether a failed connect is a refusal, by its SQLSTATE or, as most drivers provide none, by its text."""
    state = sqlstate(error)
    return _refuses_by_text(text_of(error)) if state is None else refuses_by_state(state)


def refuses_by_state(sqlstate: str) -> bool:
    """Return whether an SQLSTATE means that the server refused this connection only."""
    return sqlstate[:2] not in OF_THE_SERVER


def _refuses_by_text(text: str) -> bool:
    """Return whether the text of a failed connect is a refusal.

    In a language other than English a refusal is recognised by its quotation.
    """
    text = text[:LONGEST_READ]
    found = answers(text)
    return any(map(refuses_by_text, found)) or (not found and REFUSED_BY_CLIENT.search(text) is not None)


def answers(text: str) -> list[str]:
    """Return the answers of servers, one for each host that answered, without lines of details."""
    parts = [line.partition(SEVERITY_END) for line in text.splitlines()]
    behind_a_place = [answer for head, end, answer in parts if end and ": " in head]
    # libpq before 14 does not name the host.
    return behind_a_place or [answer for _head, end, answer in parts[:1] if end]


def is_full(answer: str) -> bool:
    """Return whether a server's answer says that no connection is left for this client."""
    return RESERVED.search(answer) is not None or FULL.search(NAMES.sub("", answer)) is not None


def refuses_by_text(answer: str) -> bool:
    """Return whether a server's answer is a refusal."""
    if is_full(answer) or CANNOT_SERVE.search(NAMES.sub("", answer)):
        return False
    return QUOTES.search(answer) is not None or REFUSES.search(answer) is not None
