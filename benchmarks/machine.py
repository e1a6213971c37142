"""The machine and the versions on which the figures were measured."""

from __future__ import annotations

import os
import platform
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import psycopg2

from otel_pgpool._version import __version__

LIBRARIES = (
    "psycopg2-binary",
    "psycopg",
    "psycopg-pool",
    "SQLAlchemy",
    "DBUtils",
    "opentelemetry-api",
    "opentelemetry-sdk",
)


def describe(dsn: str) -> dict[str, str]:
    """Name the machine, the interpreter, the server and the libraries."""
    with closing(psycopg2.connect(dsn)) as connection:
        server = f"PostgreSQL {connection.info.parameter_status('server_version')}, on the same machine"
        if connection.info.host.startswith("/"):
            server += ", over a Unix socket"
    return {
        "CPU": f"{cpu()}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.release()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "server": server,
        "libraries": ", ".join([f"otel_pgpool {__version__}", *(f"{name} {version(name)}" for name in LIBRARIES)]),
    }


def cpu() -> str:
    """Return the model of the processor, if the system has it in /proc/cpuinfo."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
