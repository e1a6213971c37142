"""Whether a failed connect was answered by a server that lives and says no, or by nobody who can serve."""

from __future__ import annotations

import re

import psycopg2

from otel_pgpool._errors import sqlstate
from otel_pgpool._messages import LONGEST_READ
from otel_pgpool._texts import text_of

OF_THE_SERVER = ("08", "53", "57", "58", "XX")
"""Classes of SQLSTATE that say that the server can serve nobody: exhausted, starting, stopping, broken."""

SEVERITY_END = ":  "
"""What libpq writes behind the severity of a server's error, in every language, and nowhere in its own messages."""

NAMES = re.compile(r'"[^"]*"')
QUOTES = re.compile('["\u00ab\u00bb\u201c-\u201f\u2039\u203a\u300c-\u300f]')
"""Servers speak the language of their ``lc_messages``; a refusal quotes the role, database or parameter."""

CANNOT_SERVE = re.compile(
    r"too many (?:clients|connections)|connection slots|no more connections|the database system|terminating connection|"
    r"out of memory|could not |cannot connect|login has been failing|shut down|crashed|timeout",
    re.IGNORECASE,
)
"""PostgreSQL's 53300, 57P03 and their like in English, and PgBouncer's, which has nothing but 08P01 for them."""

RESERVED = re.compile(r"superuser|pg_use_reserved_connections", re.IGNORECASE)
"""Whom the last slots are kept for: no role of a program's, in no language."""

REFUSES = re.compile(
    r"no such (?:database|user)|auth(?:entication)? failed|certificate|unsupported|startup packet", re.IGNORECASE
)
"""Refusals that quote nothing: PgBouncer's, and some of PostgreSQL's in English."""

REFUSED_BY_CLIENT = re.compile(
    r"no password supplied|server does not support (?:SSL|GSSAPI)|authentication method requirement"
)
"""libpq's own words where it does not go on after an answer of the server's."""


def is_refusal(error: BaseException | None) -> bool:
    """Whether the server was reached and lives, and refused this connection: a wrong password, no such database.

    A server that starts, stops or has no slot left for anybody refuses too, and yet cannot be had: this is none.
    psycopg2 knows no SQLSTATE of a failed connect, hence the message is read. In another language than English a server
    is told from one that can serve nobody by what it quotes.
    """
    if not isinstance(error, psycopg2.Error):
        return False
    state = sqlstate(error)
    if state is not None:
        return state[:2] not in OF_THE_SERVER
    text = text_of(error)[:LONGEST_READ]
    answers = _answers(text)
    return any(map(_refuses, answers)) or (not answers and REFUSED_BY_CLIENT.search(text) is not None)


def _answers(text: str) -> list[str]:
    """Return the answers of servers, one for each host that gave one, without lines of details."""
    parts = [line.partition(SEVERITY_END) for line in text.splitlines()]
    behind_a_place = [answer for head, end, answer in parts if end and ": " in head]
    return behind_a_place or [answer for _head, end, answer in parts[:1] if end]  # libpq before 14 names no place


def _refuses(answer: str) -> bool:
    if RESERVED.search(answer) or CANNOT_SERVE.search(NAMES.sub("", answer)):
        return False
    return QUOTES.search(answer) is not None or REFUSES.search(answer) is not None
