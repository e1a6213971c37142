"""Built-in modules as they are without gevent's, eventlet's or freezegun's patches."""

from __future__ import annotations

from importlib.util import find_spec, module_from_spec
from typing import Any


def load_again(name: str) -> Any:
    """Load a built-in module once more: patches are made to the first one, and to what was imported from it."""
    spec = find_spec(name)
    assert spec is not None  # nosec B101 # noqa: S101 - a built-in module has one
    assert spec.loader is not None  # nosec B101 # noqa: S101 - likewise
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
