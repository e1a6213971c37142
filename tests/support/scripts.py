"""Programs given as text, run by a Python of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).parents[2]
PATIENCE = 30.0


@contextmanager
def started(script: str, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Start a program in which every warning is an error; kill it if the test leaves it behind."""
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *arguments]
    # What they run is counted elsewhere, and each would start later.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")} | environment
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, env=environ, text=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run one to its end."""
    with started(script, *arguments, **environment) as process:
        out, err = process.communicate(timeout=PATIENCE)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run_program(
    dsn: str, program: str, *arguments: str, options: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a program's text in a Python of its own, which finds the DSN in ``DATABASE_URL``."""
    return subprocess.run(
        [sys.executable, *options, "-c", program, *arguments],
        env={**os.environ, "DATABASE_URL": dsn},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
