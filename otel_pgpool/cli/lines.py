"""Lines for a terminal. Only this module creates them, so that no line contains an unescaped control character."""

from __future__ import annotations

from rich.text import Text

from otel_pgpool.cli.foreign import shown

Part = str | tuple[str, str] | Text
"""A text, a text with its style, or a line made here before. None of them is parsed for markup."""


def joined(*parts: Part) -> Text:
    """Join the parts to one line, each of them escaped and bounded."""
    made = Text()
    for part in parts:
        if isinstance(part, Text):
            made.append_text(part)
        else:
            text, style = part if isinstance(part, tuple) else (part, None)
            made.append(shown(text), style)
    return made
