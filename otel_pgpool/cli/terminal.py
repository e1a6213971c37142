"""Output to a terminal: escaped texts and lines, the streams that print them, and the check for failed writes."""

from __future__ import annotations

import codecs
import errno
import os
import sys
import threading
from contextlib import contextmanager, redirect_stderr, suppress
from typing import IO, TYPE_CHECKING, cast
from unicodedata import category, normalize

from otel_pgpool.cli.errors import Aborted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console
    from rich.text import Text

    Part = str | tuple[str, str] | Text
    """A text, a text with its style, or a line from `make_line`. None of them is parsed for markup."""

MAX_TEXT = 1000
"""Maximum number of characters of one text."""
MAX_WIDTH = 110
STDERR = 2
MAX_STDERR_LINES = 20
STDERR_JOIN_TIMEOUT = 1.0
_GAP = " ... "
_FILLERS = {"\u115f", "\u3164", "\uffa0", *map(chr, range(0x1160, 0x1200))}
"""Letters without width, or without a visible shape."""
WAIT, HOLD, DOT = "░█·"
"""The characters of the bars; wait and hold can be distinguished without colour."""
_ASCII = {"░": ".", "█": "#", "·": "-", "…": "~"}
"""Replacements of these characters, and of rich's sign of a line cut short, if the output's encoding lacks them."""


def _replace_glyphs(error: UnicodeError) -> tuple[str | bytes, int]:
    """Handle characters that the output's encoding lacks: replace those of the bars, and escape others."""
    if isinstance(error, UnicodeEncodeError) and (replacement := _ASCII.get(error.object[error.start])):
        return replacement, error.start + 1
    return codecs.backslashreplace_errors(error)


codecs.register_error("glyphs", _replace_glyphs)


def escape(text: object, limit: int = MAX_TEXT) -> str:
    """Escape the characters of a text that a terminal interprets or hides, and shorten the text in its middle.

    These are control characters, line ends, tabs, marks of direction, and characters without width. The function does
    not change its own result.
    """
    text = _shorten(str(text), limit)
    if text.isascii() and text.isprintable():
        return text
    return _shorten("".join(map(_escape_character, normalize("NFC", text))), limit)


def _escape_character(character: str) -> str:
    visible = character.isprintable() and category(character) not in {"Mn", "Me"} and character not in _FILLERS
    return character if visible else character.encode("unicode_escape").decode("ascii")


def _shorten(text: str, limit: int) -> str:
    """Shorten a text in its middle: the beginning and the end say more."""
    if len(text) <= limit:
        return text
    end = (limit - len(_GAP)) // 2
    return f"{text[: limit - len(_GAP) - end]}{_GAP}{text[len(text) - end :]}"


def warn(text: str) -> None:
    """Print a warning or an error on stderr, as one line, unless stderr cannot be written."""
    with suppress(OSError):
        print(f"otel-pgpool: {escape(text)}", file=sys.stderr, flush=True)


class OutputError(Aborted):
    """The output cannot be written any more, as on a full disk. The message is empty for a closed pipe."""


class Output:
    """stdout or stderr. Any thread may write; only `check` raises a failure.

    So the threads of a view do not have to handle failures, and the main thread ends the run where that is safe.
    """

    def __init__(self, stream: IO[str] | None, name: str) -> None:
        """Wrap a stream, which is None if Python found it closed."""
        self._stream = stream
        self._name = name
        self._failure = OSError(errno.EBADF, os.strerror(errno.EBADF)) if stream is None else None

    @property
    def encoding(self) -> str:
        """Encoding of the stream."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        return self._stream is not None and self._stream.isatty()

    def write(self, text: str) -> int:
        """Write a text, unless an earlier write has failed."""
        self._attempt(lambda stream: stream.write(text.encode(self.encoding, "glyphs").decode(self.encoding)))
        return len(text)

    def flush(self) -> None:
        """Flush the stream's buffer."""
        self._attempt(lambda stream: stream.flush())

    def check(self) -> None:
        """Check that everything could be written so far.

        Raises:
            OutputError: something could not be written.
        """
        self.flush()
        if isinstance(self._failure, BrokenPipeError):
            raise OutputError
        if self._failure is not None:
            raise OutputError(f"{self._name} cannot be written: {self._failure.strerror}")

    def _attempt(self, write: Callable[[IO[str]], object]) -> None:
        if self._stream is None or self._failure is not None:
            return
        try:
            write(self._stream)
        except OSError as error:
            self._failure = error
            with suppress(OSError):  # what Python has buffered goes to /dev/null, because it would raise at the exit
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


@contextmanager
def escaped_stderr() -> Iterator[None]:
    """Escape what C libraries write to descriptor 2 during the block, up to a number of lines.

    libpq prints a server's notices there while it connects. ``sys.stderr`` is replaced by a stream that is not escaped.
    """
    try:
        real = open(os.dup(STDERR), "w", buffering=1, errors="backslashreplace")  # noqa: PTH123, SIM115 - a descriptor, closed below
    except OSError:  # stderr is closed: nobody reads it
        yield
        return
    reader, writer = os.pipe()
    os.dup2(writer, STDERR)
    os.close(writer)
    copying = threading.Thread(target=_copy_escaped, args=(open(reader, "rb"), real), daemon=True)  # noqa: PTH123, SIM115 - likewise
    copying.start()
    try:
        with redirect_stderr(real):
            yield
    finally:
        os.dup2(real.fileno(), STDERR)  # the pipe's last writer, unless a child process lives on
        copying.join(STDERR_JOIN_TIMEOUT)
        with suppress(OSError):
            real.close()


def _copy_escaped(reader: IO[bytes], stderr: IO[str]) -> None:
    with reader, suppress(OSError, ValueError):  # nobody reads stderr any more
        for number, line in enumerate(iter(lambda: reader.readline(MAX_TEXT), b"")):
            if number < MAX_STDERR_LINES:
                stderr.write(escape(line.decode(errors="replace").rstrip("\r\n")) + "\n")


def make_console(output: Output) -> Console:
    """Create a console with colour and animation only if the output is a terminal that supports them.

    The variable FORCE_COLOR is ignored.
    """
    from rich.console import Console  # noqa: PLC0415 - errors and --help are printed without the extra, too

    terminal = output.isatty() and os.environ.get("TERM") not in {"dumb", "unknown"}
    return Console(
        file=cast("IO[str]", output),  # `Output` has the methods that rich uses
        force_terminal=terminal,
        force_interactive=terminal,
        color_system="auto" if terminal else None,
        highlight=False,
        markup=False,
        emoji=False,
    )


def make_line(*parts: Part) -> Text:
    """Join the parts to one line, each of them escaped and bounded.

    No other function creates a line, so that no line contains an unescaped control character.
    """
    from rich.text import Text  # noqa: PLC0415 - as above

    line = Text()
    for part in parts:
        if isinstance(part, Text):
            line.append_text(part)
        else:
            text, style = part if isinstance(part, tuple) else (part, None)
            line.append(escape(text), style)
    return line


def duration(seconds: float) -> str:
    """Return a duration with two or three digits and a suitable unit: ``0.42 ms``, ``46 ms``, ``1.31 s``."""
    milliseconds = seconds * 1000
    if milliseconds < 0.005:
        return "0 ms" if milliseconds <= 0 else "<0.01 ms"
    if milliseconds < 9.995:
        return f"{milliseconds:.2f} ms"
    return f"{milliseconds:.0f} ms" if milliseconds < 999.5 else f"{seconds:.2f} s"
