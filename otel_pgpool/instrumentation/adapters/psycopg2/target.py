"""The target of a connect, read from its arguments without calling objects of the application.

A password or a host may be an object that fetches its value when its text is requested.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otel_pgpool.driver.dsn import PLACES, Target, UnknownTarget, target_of

if TYPE_CHECKING:
    from collections.abc import Mapping

PLAIN = (str, int, float, bool, type(None))
DECISIVE = (*PLACES, "port", "service", "dsn")


def target_of_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Target:
    """Return the target of the arguments, without raising; unknown if a decisive argument is not a plain value."""
    plain = {key: value for key, value in kwargs.items() if type(value) in PLAIN}
    if any(type(arg) not in PLAIN for arg in args[:1]) or any(key in DECISIVE for key in kwargs.keys() - plain.keys()):
        return UnknownTarget()
    return target_of(args, plain)
