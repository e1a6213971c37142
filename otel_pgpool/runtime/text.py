"""Texts for spans, metrics, log records and errors: third-party texts, printable and bounded, and counts."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import CodeType

LONGEST_TEXT = 1000
"""Maximum number of characters of one text."""

LONGEST_NAME = 200
"""Maximum number of characters of a name: of a pool, thread, function, class, or of the end of a file's path."""

MOST_NAMES = 1000

MOST_FRAMES = 64
"""Maximum number of frames of a stack."""

_PASSWORD = re.compile(r"(?:passw\w{0,20}|pwd)['\"]?\s*[=:]", re.IGNORECASE)


TRACEPARENT = re.compile("00-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
"""The header of W3C Trace Context, as the name of a session on the server; its group is the trace id."""


def cut(text: str, longest: int) -> str:
    """Return the text, shortened at its end if it is longer than ``longest`` characters."""
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def printable(text: str, longest: int = LONGEST_TEXT, keep: str = "") -> str:
    """Return a bounded text in which characters that are not printable are escaped.

    Args:
        text: the text, of any length.
        longest: maximum number of characters of the result.
        keep: characters to leave unescaped.
    """
    text = cut(text, longest)
    if text.isprintable():
        return text
    return cut("".join(each if each.isprintable() or each in keep else _escaped(each) for each in text), longest)


def text_of(error: BaseException) -> str:
    """Return an error's text; empty if ``str`` of an application's own class raises."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - whatever it raises
        return ""


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def may_hold_password(text: str) -> bool:
    """Return whether a text looks like a connection string in a wrong place."""
    start = text.find("://")
    return (start >= 0 and text.find("@", start) >= 0) or _PASSWORD.search(text) is not None


class PrintableNames(dict[str, str]):
    """A cache: name -> the name made printable and bounded."""

    def __missing__(self, name: str) -> str:
        shown = printable(name, LONGEST_NAME)
        if len(name) <= LONGEST_NAME:
            if len(self) >= MOST_NAMES:
                self.clear()
            self[name] = shown
        return shown


thread_names = PrintableNames()
"""The cache for names of threads, which every checkout reads; a lookup costs less than escaping each time."""


def class_of(error: BaseException) -> str:
    """Return the name of an error's class."""
    return printable(type(error).__name__, LONGEST_NAME)


def place_of(code: CodeType, line: int) -> str:
    """Return a call site in the form of Python's tracebacks."""
    return f'File "{file_of(code)}", line {line}, in {printable(code.co_name, LONGEST_NAME)}'


def file_of(code: CodeType) -> str:
    """Return the file of a code object; of a long path its end."""
    path = code.co_filename
    return printable(path if len(path) <= LONGEST_NAME else f"...{path[3 - LONGEST_NAME :]}", LONGEST_NAME)


def function_of(code: CodeType) -> str:
    """Return the qualified name of a function; on Python 3.10 its plain name."""
    return printable(getattr(code, "co_qualname", code.co_name), LONGEST_NAME)


def line_of(code: CodeType, instruction: int) -> int:
    """Return the line of an instruction of a code object."""
    for start, end, line in code.co_lines():
        if start <= instruction < end and line is not None:
            return line
    return code.co_firstlineno


def counted(count: int, noun: str) -> str:
    """Return a number of things in words, such as ``1 failed attempt``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
