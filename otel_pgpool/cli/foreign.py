"""Texts that others wrote, made fit for a terminal: one line each, of a bounded length, that only shows characters."""

from __future__ import annotations

from unicodedata import category, normalize

LONGEST = 1000
"""Characters of one text."""
_GAP = " ... "
_FILLERS = {"\u115f", "\u3164", "\uffa0", *map(chr, range(0x1160, 0x1200))}
"""Letters of no width, or of nothing but width."""


def shown(text: object, limit: int = LONGEST) -> str:
    """Return the text with every character escaped that a terminal obeys or hides, and cut in its middle.

    Escaped are control characters, line ends, tabs, marks of direction, and what has no width. What comes out goes
    through unchanged a second time.
    """
    text = _cut(str(text), limit)
    if text.isascii() and text.isprintable():
        return text
    return _cut("".join(map(_escaped, normalize("NFC", text))), limit)


def _escaped(character: str) -> str:
    visible = character.isprintable() and category(character) not in {"Mn", "Me"} and character not in _FILLERS
    return character if visible else character.encode("unicode_escape").decode("ascii")


def _cut(text: str, limit: int) -> str:
    """Keep the beginning and the end, which say more than what is between them."""
    if len(text) <= limit:
        return text
    end = (limit - len(_GAP)) // 2
    return f"{text[: limit - len(_GAP) - end]}{_GAP}{text[len(text) - end :]}"
