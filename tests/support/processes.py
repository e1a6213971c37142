"""Processes of the tests: their arguments, their versions, and children by a fork."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

from otel_pgpool.demo.postgres import find_binaries

if TYPE_CHECKING:
    from collections.abc import Callable


def arguments_of_all() -> str:
    """Return every process's arguments, which any user of the machine may read."""
    return subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True).stdout


def find_version() -> str:
    """Return the version of the PostgreSQL that `PostgresServer` starts, for example `18.6`."""
    command = [find_binaries() / "postgres", "--version"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[2]


def exit_code_of(child: Callable[[], bool], fork: Callable[[], int] = os.fork) -> int:
    """Fork, and return the exit code of the child: 0 if ``child`` returned true there, 1 if not, 2 if it raised."""
    pid = fork()
    if pid == 0:
        code = 2
        try:
            code = not child()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
