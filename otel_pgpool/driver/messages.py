"""The part of an error's text that may be shown.

An error's text can come from anywhere: a trigger, a remote server, the application's own code, a hostile server. A text
is therefore shown only if ``known_texts.txt`` has it. A value that the text quotes is shown only if it is public: a
name from the pool's own arguments, or an address.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import re
from functools import cached_property
from pkgutil import get_data
from typing import TYPE_CHECKING, Any

from otel_pgpool.errors import sqlstate
from otel_pgpool.runtime.text import printable, text_of

if TYPE_CHECKING:
    from collections.abc import Collection

LONGEST_READ = 4_000
"""Maximum number of characters of an error's text that are read: a server may send megabytes."""

MOST_LINES = 16
"""Maximum number of lines that are read: libpq writes some for each host and address that it has tried."""

DEEPEST = 4
"""Maximum number of nested texts: a host, a proxy's text, a severity, a message."""

HIDDEN = "..."
"""The text in the place of a value that may not be shown."""

_SCOPE = re.compile("[0-9]{1,3}|(?:eth|en|wl|lo|br|docker)[0-9a-z]{0,12}")
"""The scope of an IPv6 address: an interface's number, or a name as systems assign it."""

OF_SYSTEM = frozenset(os.strerror(number) for number in errno.errorcode)
"""Texts of the operating system's errors, as libpq quotes them: from the same C library, in the same language."""


_HOLE = re.compile(r"\{s?\}")

SECONDS = "{s}"
"""The placeholder of a time limit below 10 s. It is shown; texts that have it have no other placeholder."""


class Template:
    """A text with placeholders, whose values differ from case to case.

    A placeholder is written ``{}``, or ``{s}`` for a number of seconds.
    """

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """The pattern of the text, compiled at its first use: all together take tenths of a second."""
        pieces, holes = _HOLE.split(self.text), _HOLE.findall(self.text)
        groups = [_group(before, hole) for before, hole in zip(pieces[:-1], holes, strict=True)]
        body = "".join(re.escape(piece) + group for piece, group in zip(pieces, [*groups, ""], strict=True))
        return re.compile(body, re.DOTALL)


def _group(before: str, hole: str) -> str:
    """Return the pattern of a placeholder's value; ``before`` is the text before it."""
    if hole == SECONDS:
        return r"([0-9](?:\.[0-9]{1,4})?)"
    return '([^"]*)' if before.endswith('"') else "(.*?)"


def _templates() -> dict[str, list[Template]]:
    """Return the templates by the first three characters of their texts."""
    found: dict[str, list[Template]] = {}
    for text in (get_data(__package__, "known_texts.txt") or b"").decode().splitlines():
        if text and not text.startswith("# "):
            found.setdefault(text[:3], []).append(Template(text))
    return found


_TEMPLATES = _templates()  # read at import: later there may be no file descriptor left


def known(text: str, public: Collection[str]) -> str:
    """Return the part of an error's text that may be shown, in one line; empty if there is none.

    Args:
        text: the error's text, of any length and number of lines.
        public: values that the text may quote, in addition to addresses.
    """
    lines = text[:LONGEST_READ].splitlines()[:MOST_LINES]
    shown = dict.fromkeys(_known_line(line.strip(), public) for line in lines if not line.startswith("\t"))
    return "; ".join(filter(None, shown))


def known_text(error: Any, public: Collection[str]) -> str:
    """Return the part of an error of psycopg or psycopg2 that may be shown, one printable line; maybe empty.

    Nothing is shown of an error that a procedural language raised, with any text and SQLSTATE. Its ``source_file`` is
    PostgreSQL's pl_exec.c, plpy_elog.c or plperl.c.
    """
    if sqlstate(error) is None:
        return printable(known(text_of(error), public))
    diagnosis = error.diag
    if (diagnosis.source_file or "pl").startswith("pl"):
        return ""
    constraint = diagnosis.constraint_name
    return printable(known(diagnosis.message_primary or "", public if constraint is None else {*public, constraint}))


def _known_line(line: str, public: Collection[str], depth: int = 0) -> str:
    if line in OF_SYSTEM:
        return line
    for template in _TEMPLATES.get(line[:3], ()):
        found = template.pattern.fullmatch(line)
        if found is not None:
            if SECONDS in template.text:
                return line
            return template.text.format(*(_quoted(value, public, depth) for value in found.groups()))
    return ""


def _quoted(value: str, public: Collection[str], depth: int) -> str:
    if value in public or _is_address(value):
        return value
    return (_known_line(value, public, depth + 1) if depth < DEEPEST else "") or HIDDEN


def _is_address(value: str) -> bool:
    address, _, scope = value.partition("%")
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return value == "[local]"
    return not scope or _SCOPE.fullmatch(scope) is not None
