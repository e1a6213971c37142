"""The threads that connect: how long a close waits for them."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from otel_pgpool.pool.base import Common
from otel_pgpool.pool.connect import Connectors


@pytest.fixture
def connectors() -> Any:
    """Connectors whose threads never connect."""
    kept: Any = threading.Event()  # what the connectors belong to
    nothing: Any = None
    thread: Any = SimpleNamespace(wakeup=nothing)
    made = Connectors(Common(nothing, nothing, nothing, nothing, nothing, thread), kept, nothing)
    yield made
    del kept


@pytest.mark.parametrize("seconds", [0.2, 0.0])
def test_all_threads_share_the_time(connectors: Connectors, seconds: float) -> None:
    """However many there are, a close does not take longer than it was given."""
    end = threading.Event()
    threads = [threading.Thread(target=end.wait, args=(30,)) for _ in range(5)]
    for thread in threads:
        thread.start()
        connectors._started.add(thread)
    began = time.monotonic()
    connectors.join(seconds)
    took = time.monotonic() - began
    end.set()
    connectors.join(1e12)  # more than threading allows
    assert not any(thread.is_alive() for thread in threads)
    assert took < 5 * 0.2
