"""Processes of the tests: their arguments, and what runs in forked children."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any

from otel_pgpool.demo.postgres import find_binaries
from otel_pgpool.runtime import fork as forking
from tests.support.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def arguments_of_all() -> str:
    """Return every process's arguments, which any user of the machine may read."""
    return subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True).stdout


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


def fork_in_c() -> int:
    """Fork as servers written in C do, so that Python's own callbacks do not run, at a quiet moment.

    While a thread connects, a child would inherit locks of OpenSSL's. While a thread wants the GIL, CPython would hand
    the GIL to that thread in the child too, where it does not exist, before any code of the pool's runs.
    """
    forking._before()  # waits for connects, and delays new ones
    before = sys.getswitchinterval()
    sys.setswitchinterval(PATIENCE)  # for so long no thread asks for the GIL that begins to wait for it from now on
    time.sleep(2 * before)  # the others have their turn
    forking._after_in_parent()  # from here to the fork no other thread runs
    try:
        child: int = ctypes.PyDLL(None).fork()
    finally:
        sys.setswitchinterval(before)
    return child


def stacks() -> str:
    """Return the stack of each thread of this process: it shows at which call a thread stands that serves nobody."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sys._current_frames().items()
    return "\n".join(f"{names.get(ident)}:\n{''.join(traceback.format_stack(frame))}" for ident, frame in frames)


def in_child(function: Callable[[], Any], fork: Callable[[], int] | None = None) -> str:
    """Run it in a forked child and return what it returned as text; what it raised fails the test."""
    read, write = os.pipe()
    child = (fork or os.fork)()  # as it is now: a test may have put another in its place
    if child == 0:
        answer = "failed before it began"
        try:
            signal.alarm(0)
            answer = f"={function()}"
        except BaseException:  # noqa: BLE001 - told to the parent
            answer = f"{traceback.format_exc()}\n{stacks()}"
        finally:
            os.write(write, answer.encode()[:60_000])
            os._exit(0)
    os.close(write)
    try:
        told = b""
        while select.select([read], [], [], 30)[0] and (chunk := os.read(read, 65_536)):
            told += chunk
    finally:
        os.close(read)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert told.startswith(b"="), f"in the child: {told.decode() or 'no answer'}"
    return told.decode()[1:]


def find_version() -> str:
    """Return the version of the PostgreSQL that `PostgresServer` starts, for example `18.6`."""
    command = [str(find_binaries() / "postgres"), "--version"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[2]


@contextlib.contextmanager
def frozen(*pids: int) -> Iterator[None]:
    """Stop these processes; inside the block they exist and neither answer nor end."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
