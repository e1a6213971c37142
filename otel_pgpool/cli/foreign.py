"""Escaping of texts from elsewhere for a terminal: one line each, bounded, without control characters."""

from __future__ import annotations

from unicodedata import category, normalize

LONGEST = 1000
"""Maximum number of characters of one text."""
_GAP = " ... "
_FILLERS = {"\u115f", "\u3164", "\uffa0", *map(chr, range(0x1160, 0x1200))}
"""Letters without width, or without a visible shape."""


def shown(text: object, limit: int = LONGEST) -> str:
    """Return the text with characters escaped that a terminal interprets or hides, and shortened in its middle.

    These are control characters, line ends, tabs, marks of direction, and characters without width. The function does
    not change its own result.
    """
    text = _cut(str(text), limit)
    if text.isascii() and text.isprintable():
        return text
    return _cut("".join(map(_escaped, normalize("NFC", text))), limit)


def _escaped(character: str) -> str:
    visible = character.isprintable() and category(character) not in {"Mn", "Me"} and character not in _FILLERS
    return character if visible else character.encode("unicode_escape").decode("ascii")


def _cut(text: str, limit: int) -> str:
    """Shorten a text in its middle: the beginning and the end say more."""
    if len(text) <= limit:
        return text
    end = (limit - len(_GAP)) // 2
    return f"{text[: limit - len(_GAP) - end]}{_GAP}{text[len(text) - end :]}"
