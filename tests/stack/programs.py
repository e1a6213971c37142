"""Programs of others that the stack runs on: named by a variable, on PATH, or unpacked from Debian by `make test`."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

UNPACKED = Path(sys.prefix) / "debian"
FOLDERS = (UNPACKED / "usr/bin", UNPACKED / "usr/sbin")


def find_program(name: str) -> Path:
    """The program that its variable names (PROMETHEUS for prometheus), else that on PATH, else Debian's.

    The test is skipped where there is none; in CI it fails.
    """
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *map(str, FOLDERS)])
    if found := shutil.which(os.environ.get(name.upper()) or name, path=path):
        return Path(found).absolute()
    reason = f"there is no {name}: {name.upper()} does not name it, and it is neither on PATH nor in {UNPACKED}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def environment() -> dict[str, str]:
    """This process's environment, in which what was unpacked finds its libraries too."""
    folders = [str(folder) for folder in sorted((UNPACKED / "usr/lib").glob("*-linux-*"))]
    if "LD_LIBRARY_PATH" in os.environ:
        folders.append(os.environ["LD_LIBRARY_PATH"])
    return {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(folders)} if folders else dict(os.environ)
