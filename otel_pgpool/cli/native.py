"""Escaping of texts that C libraries print: libpq prints a server's notices on stderr while it connects."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING

from otel_pgpool.cli.foreign import LONGEST, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

STDERR = 2
MOST_LINES = 20
JOIN_TIMEOUT = 1.0


@contextmanager
def escaped_stderr() -> Iterator[None]:
    """Escape what is written to descriptor 2 during the block, up to a number of lines.

    ``sys.stderr`` is replaced by a stream that does not go through this.
    """
    try:
        real = os.dup(STDERR)
    except OSError:  # it is closed: nobody reads it
        yield
        return
    python, before = open(os.dup(real), "w", buffering=1, errors="backslashreplace"), sys.stderr  # noqa: PTH123, SIM115 - a descriptor, closed below
    reader, writer = os.pipe()
    os.dup2(writer, STDERR)
    os.close(writer)
    passing = threading.Thread(target=_pass_on, args=(open(reader, "rb"), python), daemon=True)  # noqa: PTH123, SIM115 - likewise
    passing.start()
    sys.stderr = python
    try:
        yield
    finally:
        sys.stderr = before
        os.dup2(real, STDERR)  # the pipe's last writer, unless a child process lives on
        os.close(real)
        passing.join(JOIN_TIMEOUT)
        with suppress(OSError):
            python.close()


def _pass_on(reader: IO[bytes], stderr: IO[str]) -> None:
    with reader, suppress(OSError, ValueError):  # whoever was to see it is gone
        count = 0
        while line := reader.readline(LONGEST):
            count += 1
            if count <= MOST_LINES:
                stderr.write(shown(line.decode(errors="replace").rstrip("\r\n")) + "\n")
