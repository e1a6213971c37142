"""The command's output streams, and how a failure to write to them ends the command."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import IO

from otel_pgpool.cli.errors import BrokenOff


class OutputFailed(BrokenOff):
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
        if self._stream is not None and self._failure is None:
            try:
                self._stream.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))
            except OSError as error:
                self._fail(self._stream, error)
        return len(text)

    def flush(self) -> None:
        """Flush the stream's buffer."""
        if self._stream is not None and self._failure is None:
            try:
                self._stream.flush()
            except OSError as error:
                self._fail(self._stream, error)

    def check(self) -> None:
        """Check that everything could be written so far.

        Raises:
            OutputFailed: something could not be written.
        """
        self.flush()
        if isinstance(self._failure, BrokenPipeError):
            raise OutputFailed
        if self._failure is not None:
            raise OutputFailed(f"{self._name} cannot be written: {self._failure.strerror}")

    def _fail(self, stream: IO[str], error: OSError) -> None:
        self._failure = error
        with suppress(OSError):  # /dev/null takes what Python has buffered, which would raise at the exit otherwise
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
