"""Protection from the patches of gevent, eventlet and freezegun."""

from __future__ import annotations

import threading
from importlib.util import find_spec, module_from_spec
from typing import Any


def is_unpatched(lock: object) -> bool:
    """Return whether gevent has replaced ``threading.Lock`` since this lock was created.

    Waiting on such a lock would stop every greenlet.
    """
    return type(lock) is not type(threading.Lock())


def has_green_threads() -> bool:
    """Return whether gevent or eventlet has replaced ``threading.Lock``, so that threads are greenlets."""
    return type(threading.Lock()).__module__.partition(".")[0] in ("gevent", "eventlet")


def load_again(name: str) -> Any:
    """Load a second copy of a built-in module. Patches apply to the first one, and to names imported from it."""
    spec: Any = find_spec(name)  # never None for a built-in module
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
