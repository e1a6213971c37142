"""Validation of values. Errors contain the name of the option, the value and what is accepted."""

from __future__ import annotations

import math
import operator
from contextlib import suppress
from numbers import Real
from typing import Any

from otel_pgpool.runtime.text import cut, may_hold_password

LONGEST_VALUE = 80
"""Maximum number of characters that an error shows of an invalid value."""

MOST_CONNECTIONS = 262_143
"""PostgreSQL's own bound on ``max_connections``."""


def invalid_option(option: str, value: object, accepted: str) -> ValueError:
    """Return the error for an invalid value. A long value is shortened; one that may hold a password is not shown."""
    shown = repr(value)
    if may_hold_password(shown):
        return ValueError(f"{option} must be {accepted}; the value is not shown, because it may contain a password")
    return ValueError(f"{option} must be {accepted}, not {cut(shown, LONGEST_VALUE)}")


def validate_seconds(
    option: str, value: object, *, least: float = 0.0, above: bool = False, none: bool = False
) -> float:
    """Validate a duration in seconds, which may be infinite.

    Raises:
        ValueError: the value is not a number, NaN, or below ``least`` (with ``above``: not above ``least``).
    """
    bound = f"{'above' if above else 'of at least'} {least:g} (math.inf allowed)"
    accepted = f"a number of seconds {bound}{' or None' if none else ''}"
    number = math.nan
    if not isinstance(value, bool) and isinstance(value, Real):
        with suppress(OverflowError):
            number = float(value)
    if math.isnan(number) or number < least or (above and number == least):
        raise invalid_option(option, value, accepted)
    return number


def validate_integer(option: str, value: object, *, least: int = 0, most: int | None = None, none: bool = False) -> int:
    """Validate an integer.

    Raises:
        ValueError: the value is not an integer, below ``least`` or above ``most``.
    """
    bound = "" if most is None else f" and at most {most}"
    accepted = f"a whole number of at least {least}{bound}{' or None' if none else ''}"
    number = None
    if not isinstance(value, bool):
        with suppress(TypeError):  # the value is not an integer
            number = operator.index(value)  # type: ignore[arg-type]
    if number is None or number < least or (most is not None and number > most):
        raise invalid_option(option, value, accepted)
    return number


def validate_limits(
    minconn: object = ..., maxconn: object = ..., min_size: object = ..., max_size: object = ...
) -> tuple[int, int]:
    """Validate the size limits of a pool, each by either of its names, and return them as integers.

    Raises:
        ValueError: a limit is not an integer, ``maxconn`` is out of bounds, or ``minconn`` is above ``maxconn``; or a
            limit has both of its names, or neither.
    """
    lower, minimum = _either("minconn", minconn, "min_size", min_size)
    upper, maximum = _either("maxconn", maxconn, "max_size", max_size)
    return validate_bounds(lower, minimum, upper, maximum)


def validate_bounds(lower: str, minimum: object, upper: str, maximum: object) -> tuple[int, int]:
    """Validate the size limits of a pool, by the names ``lower`` and ``upper``. See `validate_limits`."""
    least = validate_integer(lower, minimum)
    most = validate_integer(upper, maximum, least=1, most=MOST_CONNECTIONS)
    if least > most:
        raise invalid_option(lower, minimum, f"at most {upper} ({most})")
    return least, most


def _either(name: str, value: object, other_name: str, other: object) -> tuple[str, object]:
    """Return the name and the value of an option that has two names; ``...`` stands for a name that is not used.

    Raises:
        ValueError: both names are used, or neither.
    """
    if other is ... and value is ...:
        raise ValueError(f"{name} must be given, or {other_name}, which means the same")
    if other is ...:
        return name, value
    if value is ...:
        return other_name, other
    hint = ": give a DSN as dsn=" if isinstance(value, str) else ""
    raise ValueError(f"{name} and {other_name} are two names of one option: give one of them{hint}")


def validate_bool(option: str, value: object) -> bool:
    """Validate a truth value.

    Raises:
        ValueError: the value is neither True nor False.
    """
    if not isinstance(value, bool):
        raise invalid_option(option, value, "True or False")
    return value


def validate_callable(option: str, value: Any, *, also: str = "None") -> Any:
    """Validate a callable or None.

    Raises:
        ValueError: the value is neither.
    """
    if value is not None and not callable(value):
        raise invalid_option(option, value, f"a callable or {also}")
    return value


def validate_attempts(max_attempts: object, max_retries: object) -> int | None:
    """Validate the number of failed attempts after which a checkout gives up, by either of its names.

    Raises:
        ValueError: the number is invalid, or both names are used.
    """
    if max_attempts is not None and max_retries is not None:
        raise ValueError("max_attempts and max_retries are two names of one option: give max_attempts only")
    if max_retries is not None:
        return max(1, validate_integer("max_retries", max_retries, none=True))
    return None if max_attempts is None else validate_integer("max_attempts", max_attempts, least=1, none=True)


def validate_observer(value: object) -> None:
    """Validate an observer of a pool, None, or ``...`` for the default.

    Raises:
        ValueError: the value is none of these, such as a class of observers.
    """
    if value is not None and value is not ... and (isinstance(value, type) or not hasattr(value, "attached")):
        raise invalid_option("observer", value, "a PoolObserver (an object, not its class) or None")
