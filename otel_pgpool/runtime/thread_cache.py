"""A cache of the running thread, which each checkout records."""

from __future__ import annotations

import threading
from typing import Any


def _make_here() -> Any:
    class Here(threading.local):
        """A cache of the running thread, at half the cost of ``threading.current_thread``."""

        def __init__(self) -> None:
            self.thread = threading.current_thread()

    return Here()


here = _make_here()


def reset_thread_cache() -> None:
    """Replace the thread cache if gevent has replaced ``threading.local`` since this module was imported."""
    global here  # noqa: PLW0603 - a module-level name is the fastest that a checkout can read
    if not isinstance(here, threading.local):
        here = _make_here()
