"""Programs of their own, for what may not happen to the tests' process."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

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
