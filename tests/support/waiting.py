"""Waiting for conditions, and threads whose results are waited for."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 15.0  # seconds: reached only by a test that fails


def wait_until(condition: Callable[[], Any], timeout: float = PATIENCE) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def in_thread(function: Callable[..., Any], *args: Any, name: str | None = None) -> Future[Any]:
    """Run it in a thread of its own; ``result(PATIENCE)`` gives what it returned, or raises what it raised."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(function(*args))
        except BaseException as error:  # noqa: BLE001 - handed on
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
