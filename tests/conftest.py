"""What every test shares: the server's version in the header, and a watch on threads left behind."""

from __future__ import annotations

import signal
import threading
import time
from typing import TYPE_CHECKING

import pytest

from otel_pgpool.cli.postgres import find_binaries, find_version

if TYPE_CHECKING:
    from collections.abc import Iterator

THREAD_PREFIX = "otel_pgpool"
THREADS_END_WITHIN = 15.0  # seconds: reached only by a test that fails


def pytest_configure() -> None:
    """A shell starts its background jobs with Ctrl-C ignored, and so would every program be that the tests start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    return f"PostgreSQL {find_version()} ({find_binaries()})"


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    """A test that leaves a thread of the pool behind fails."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + THREADS_END_WITHIN
    left = [thread for thread in threading.enumerate() if _is_ours(thread) and thread not in before]
    for thread in left:
        thread.join(max(0.0, deadline - time.monotonic()))
    names = [thread.name for thread in left if thread.is_alive()]
    assert not names, f"threads left behind: {names}; close the pool"


def _is_ours(thread: threading.Thread) -> bool:
    """The watch over deadlines belongs to the process, and rests by itself."""
    return thread.name.startswith(THREAD_PREFIX) and thread.name != "otel_pgpool-deadlines"
