"""Real programs in processes of their own: started as their users start them, and ended whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2

from tests.support.urls import url_of
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from psycopg2.extensions import connection

    from tests.support.receivers import Receiver

PROGRAMS = Path(__file__).parents[1] / "integration/instrumentation/programs"
BIN = Path(sys.executable).parent
ENDS_WITHIN = 40.0  # seconds: reached only by a test that fails
UNDER_OTEL = ("opentelemetry-instrument",)


@contextmanager
def database(server_dsn: str, name: str) -> Iterator[connection]:
    """Provide a database for one program, and a connection beside the program's, in autocommit."""
    admin = psycopg2.connect(server_dsn)
    admin.autocommit = True
    with admin.cursor() as cur:
        cur.execute(f"create database {name}")
    beside = psycopg2.connect(server_dsn, dbname=name, application_name="beside")
    beside.autocommit = True
    try:
        yield beside
    finally:
        beside.close()
        with admin.cursor() as cur:
            cur.execute(f"drop database {name} with (force)")
        admin.close()


def url_of_database(conn: connection) -> str:
    """Return the URL for programs; a connection's own DSN has no password."""
    return url_of(conn.dsn, password=conn.info.password, application_name=None)


class Program:
    """One that runs."""

    def __init__(self, process: subprocess.Popen[str], errors: Any) -> None:
        self.process = process
        self._errors = errors

    @property
    def runs(self) -> bool:
        return self.process.poll() is None

    @property
    def errors(self) -> str:
        """What it has written to stderr."""
        self._errors.seek(0)
        return str(self._errors.read())

    def line(self) -> str:
        """Return the next line that the program prints."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"it has ended: {self.errors}"
        return line.strip()

    def tell(self, line: str) -> None:
        """Write it to its stdin."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def end(self, how: int | None = None) -> str:
        """Wait for its end, after a signal or the end of its stdin; what it printed last."""
        if how is not None:
            self.process.send_signal(how)
        printed, _ = self.process.communicate(timeout=ENDS_WITHIN)
        assert self.process.returncode == 0, self.errors
        return printed


@contextmanager
def running(
    *command: str | Path,
    receiver: Receiver | None,
    beside: connection,
    listener: socket.socket | None = None,
    **environ: str,
) -> Iterator[Program]:
    """Run a program, in a group of its own with the processes that it starts; the whole group ends with the block."""
    foreign = ("OTEL_", "PG", "PYTHON", "COVERAGE_")  # what these run is counted elsewhere, and each would start later
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [str(each) for each in command],
            env={
                **inherited,
                "PATH": f"{BIN}{os.pathsep}{inherited.get('PATH', '')}",
                "DATABASE_URL": url_of_database(beside),
                "OTEL_BSP_SCHEDULE_DELAY": "50",
                "OTEL_BLRP_SCHEDULE_DELAY": "50",
                **(receiver.environ if receiver else {}),
                **environ,
            },
            cwd=PROGRAMS,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
            pass_fds=() if listener is None else (listener.fileno(),),
        ) as process,
    ):
        try:
            yield Program(process, errors)
        except BaseException:
            errors.seek(0)
            print(errors.read(), file=sys.stderr)
            raise
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def locked(beside: connection, table: str) -> Iterator[None]:
    """Hold up every statement on a table."""
    holder = psycopg2.connect(url_of_database(beside), application_name="beside")
    try:
        with holder.cursor() as cur:
            cur.execute(f"lock table {table} in access exclusive mode")
            yield
    finally:
        holder.close()


def backends(beside: connection, waiting: bool | None = None) -> set[int]:
    """Return the program's backends; or only those that wait, or do not wait, for a lock."""
    with beside.cursor() as cur:
        cur.execute(
            "select pid from pg_stat_activity where datname = current_database() and application_name <> 'beside'"
            " and backend_type = 'client backend' and (%(waiting)s is null or"
            " coalesce(wait_event_type = 'Lock', false) = %(waiting)s)",
            {"waiting": waiting},
        )
        return {pid for (pid,) in cur}


def until_held_up(beside: connection, count: int) -> set[int]:
    """Wait until so many of the program's backends wait for a lock; these."""
    assert wait_until(lambda: len(backends(beside, waiting=True)) == count), backends(beside, waiting=True)
    return backends(beside, waiting=True)
