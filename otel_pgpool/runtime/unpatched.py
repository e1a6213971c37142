"""Built-in modules without the patches of gevent, eventlet or freezegun."""

from __future__ import annotations

from importlib.util import find_spec, module_from_spec
from typing import Any


def load_again(name: str) -> Any:
    """Load a second copy of a built-in module. Patches apply to the first one, and to names imported from it."""
    spec = find_spec(name)
    assert spec is not None  # nosec B101 # noqa: S101 - a built-in module has one
    assert spec.loader is not None  # nosec B101 # noqa: S101 - a built-in module has one
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
