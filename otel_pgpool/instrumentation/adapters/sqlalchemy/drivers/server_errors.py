"""The errors of drivers that parse a server's error themselves, and those of the operating system."""

from __future__ import annotations

import errno
import os
import re
import socket
from typing import TYPE_CHECKING

from otel_pgpool.driver.messages import known
from otel_pgpool.runtime.text import LONGEST_TEXT, class_of, printable, text_of

if TYPE_CHECKING:
    from collections.abc import Collection

_SQLSTATE = re.compile("[0-9A-Z]{5}")
_NUMBER = re.compile(r"\[Errno (\d{1,3})\]")
"""The number of an error in the text of another that sums up several, as asyncio raises for a name's addresses."""


def valid_state(state: object) -> str | None:
    """Return an SQLSTATE, or None if the error has none; a hostile server may send anything."""
    return state if isinstance(state, str) and _SQLSTATE.fullmatch(state) else None


def error_type(error: BaseException, state: object) -> str:
    """Return the value of ``error.type`` for an error with this SQLSTATE, or with none."""
    return valid_state(state) or class_of(error)


def server_text(message: str | None, constraint: str | None, source_file: str | None, public: Collection[str]) -> str:
    """Return the part of a server's message that may be shown.

    Nothing is shown of an error that a procedural language raised, because its text can be any.
    """
    if (source_file or "pl").startswith("pl"):
        return ""
    return printable(known(message or "", {*public, constraint} if constraint else public))


def system_text(error: BaseException | None) -> str:
    """Return the operating system's text of an error, without the address; empty if there is none."""
    if isinstance(error, socket.gaierror):
        return known(str(error.strerror or ""), ())
    if not isinstance(error, OSError):
        return ""
    numbers = [error.errno] if error.errno else [*map(int, _NUMBER.findall(text_of(error)[:LONGEST_TEXT]))]
    return "; ".join(dict.fromkeys(os.strerror(number) for number in numbers if number in errno.errorcode))
