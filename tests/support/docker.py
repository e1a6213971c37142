"""A stand-in for Docker, which writes down what it is asked, and `make`, which asks it."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

from tests.support.stack_files import ROOT

if TYPE_CHECKING:
    from pathlib import Path

WILLING = """#!/bin/sh
cd "${0%/*}" && echo "$@" >>log && echo "$COMPOSE_PROFILES" >>profiles
if [ "$2" = port ]; then cat "$3" 2>/dev/null || echo "127.0.0.1:$4"; fi
"""
UNABLE = """#!/bin/sh
cd "${0%/*}" && echo "$@" >>log
exit 1
"""


class Docker:
    """It publishes each port as it is, unless `publish` says where. What `make` writes is in `settings`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.settings = folder / ".env"
        self._write(WILLING)

    def _write(self, script: str) -> None:
        program = self._folder / "docker"
        program.write_text(script)
        program.chmod(0o755)

    def publish(self, service: str, address: str) -> None:
        (self._folder / service).write_text(f"{address}\n")

    def break_off(self) -> None:
        """From now on all that it is asked fails."""
        self._write(UNABLE)

    @property
    def asked(self) -> list[str]:
        return (self._folder / "log").read_text().splitlines()

    @property
    def profiles(self) -> list[str]:
        """The profiles that were on, each time that it was asked."""
        return (self._folder / "profiles").read_text().splitlines()

    def make(self, *target: str) -> subprocess.CompletedProcess[str]:
        """Run a target, with this Docker on PATH."""
        environment = {**os.environ, "PATH": f"{self._folder}:{os.environ['PATH']}"}
        for of_the_make_around in ("COMPOSE_PROFILES", "MAKEFLAGS", "MAKELEVEL", "STACK"):
            environment.pop(of_the_make_around, None)
        command = ["make", "-f", str(ROOT / "Makefile"), *target]
        return subprocess.run(command, cwd=self._folder, env=environment, capture_output=True, text=True, check=False)
