"""Where the command's text goes, and what is done when it cannot go there."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import IO

from otel_pgpool.cli.errors import BrokenOff


class OutputFailed(BrokenOff):
    """The output takes nothing more: a full disk, say. That its reader has gone is told to nobody."""


class Output:
    """stdout or stderr. It can be written to from every thread, and none of them is told of a failure but by `check`.

    So a view's own threads need not care, and the main thread ends the run where that is safe.
    """

    def __init__(self, stream: IO[str] | None, name: str) -> None:
        """``stream`` is None where Python found it closed."""
        self._stream = stream
        self._name = name
        self._failure = OSError(errno.EBADF, os.strerror(errno.EBADF)) if stream is None else None

    @property
    def encoding(self) -> str:
        """Of the stream."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self._stream is not None and self._stream.isatty()

    def write(self, text: str) -> int:
        """Write, unless it has failed before."""
        if self._stream is not None and self._failure is None:
            try:
                self._stream.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))
            except OSError as error:
                self._fail(self._stream, error)
        return len(text)

    def flush(self) -> None:
        """Let go of what is buffered."""
        if self._stream is not None and self._failure is None:
            try:
                self._stream.flush()
            except OSError as error:
                self._fail(self._stream, error)

    def check(self) -> None:
        """See that all of it could be written so far.

        Raises:
            OutputFailed: it could not be.
        """
        self.flush()
        if isinstance(self._failure, BrokenPipeError):
            raise OutputFailed
        if self._failure is not None:
            raise OutputFailed(f"{self._name} cannot be written: {self._failure.strerror}")

    def _fail(self, stream: IO[str], error: OSError) -> None:
        self._failure = error
        with suppress(OSError):  # what Python still has for it goes nowhere, rather than into a complaint at its exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
