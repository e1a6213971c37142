"""Programs of others that the stack runs on: named by a variable, on PATH, or unpacked from Debian by `make test`.

And the ports at which programs listen.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import sys
from contextlib import suppress
from pathlib import Path

import pytest

UNPACKED = Path(sys.prefix) / "debian"
FOLDERS = (UNPACKED / "usr/bin", UNPACKED / "usr/sbin")
# Below those that `PostgresServer` takes, and those that the system gives whoever asks for any: a port that is free now
# is free when the program has come so far as to listen.
PORTS = range(10_000, 15_000)
HOST = "127.0.0.1"


def locate_program(name: str) -> Path | None:
    """Return the program that its variable names (PROMETHEUS for prometheus), else that on PATH, else Debian's."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *map(str, FOLDERS)])
    found = shutil.which(os.environ.get(name.upper()) or name, path=path)
    return Path(found).absolute() if found else None


def missing(name: str) -> str:
    """Return the text about a program that is not here."""
    return f"there is no {name}: {name.upper()} does not name it, and it is neither on PATH nor in {UNPACKED}"


def find_program(name: str) -> Path:
    """Return the program of `locate_program`. The test is skipped if there is none; in CI it fails."""
    if found := locate_program(name):
        return found
    if os.environ.get("CI") == "true":
        pytest.fail(missing(name))
    pytest.skip(missing(name))


def free_ports(count: int) -> list[int]:
    """Ports of HOST at which programs may listen."""
    found: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        with suppress(OSError), socket.socket() as probe:
            probe.bind((HOST, port))
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError(f"of {PORTS}, no {count} are free")


def environment() -> dict[str, str]:
    """Return this process's environment, with the libraries of unpacked programs."""
    folders = [str(folder) for folder in sorted((UNPACKED / "usr/lib").glob("*-linux-*"))]
    if "LD_LIBRARY_PATH" in os.environ:
        folders.append(os.environ["LD_LIBRARY_PATH"])
    return {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(folders)} if folders else dict(os.environ)
