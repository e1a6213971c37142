"""The options of a pool that can be changed while it works."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

from otel_pgpool.config import checkout_timeout, long_hold_threshold, validate_seconds_or_never
from otel_pgpool.pool.state import PoolState
from otel_pgpool.runtime.fork import renewed

if TYPE_CHECKING:
    from collections.abc import Collection

SIMILARITY = 0.8
"""How similar the name of an attribute has to be to that of an option, to count as a misspelling of it."""

LEAST_LENGTH = 6
"""Minimum length of a name whose misspellings are recognized; shorter ones resemble other words."""


def check_assignment(kind: type, name: str, options: Collection[str]) -> None:
    """Check that an assignment to an attribute of a pool is not an attempt to change a fixed option.

    Args:
        kind: the class of the pool.
        name: the name of the attribute.
        options: the names of the options of the constructor.

    Raises:
        AttributeError: the name is that of an option that cannot be changed, or a misspelled one.
    """
    attribute = getattr(kind, name, None)
    if name.startswith("_"):
        return
    if attribute is None and name not in options:
        similar = get_close_matches(name, [each for each in options if len(each) >= LEAST_LENGTH], 1, SIMILARITY)
        if not similar:
            return
        problem = f"a {kind.__name__} has no option {name!r} (did you mean {similar[0]!r}?)"
    elif attribute is None or (isinstance(attribute, property) and attribute.fset is None):
        problem = f"{name!r} of a {kind.__name__} cannot be changed by assignment"
    else:
        return
    raise AttributeError(
        f"{problem}: assign timeout, long_hold, max_idle or max_lifetime, or call resize(minconn, maxconn)"
    )


class LiveOptions(PoolState):
    """The options of a `ConnectionPool` that can be changed at any time, by assignment, and that work at once.

    Each has the meaning and the bounds that it has in the constructor, and reads as infinite if it is switched off. An
    invalid value raises a ValueError, and nothing is changed then. In a forked child the values of the fork go on. An
    assignment to another option of a ``ConnectionPool`` raises an AttributeError; a subclass may have attributes of any
    name.
    """

    @property
    def timeout(self) -> float:
        """Longest wait for a connection in seconds. A new value also counts for the callers that wait now.

        Their time began when they asked. A ``timeout`` of ``connection()`` or ``getconn()`` takes precedence. None for
        the default, as in the constructor.
        """
        return self._parts.durations.timeout

    @timeout.setter
    @renewed
    def timeout(self, seconds: float | None) -> None:
        self._parts.lifecycle.change_timeout(checkout_timeout(seconds))

    @property
    def long_hold(self) -> float:
        """Hold time in seconds after which a checkout is reported as a long hold; infinite if switched off.

        A new value also counts for present holds: those past it are reported now. None or 0 switches the reports off. A
        hold that was reported before stays a long hold. An ``expected_hold`` takes precedence.
        """
        return self._parts.core.long_hold

    @long_hold.setter
    @renewed
    def long_hold(self, seconds: float | None) -> None:
        self._parts.lifecycle.change_long_hold(long_hold_threshold(seconds))

    @property
    def max_idle(self) -> float:
        """Seconds after which an idle connection above ``minconn`` is closed; infinite for never.

        A new value counts from the last use of each connection: those idle for longer are closed now. None for never.
        """
        return self._parts.durations.max_idle

    @max_idle.setter
    @renewed
    def max_idle(self, seconds: float | None) -> None:
        self._parts.lifecycle.change_max_idle(validate_seconds_or_never("max_idle", seconds))

    @property
    def max_lifetime(self) -> float:
        """Maximum age of a connection in seconds, shortened by up to 10 % at random; infinite for no limit.

        A new value counts from the connect of each connection: idle connections past it are replaced now, the others
        when they are released. None for no limit.
        """
        return self._parts.durations.max_lifetime

    @max_lifetime.setter
    @renewed
    def max_lifetime(self, seconds: float | None) -> None:
        self._parts.lifecycle.change_max_lifetime(validate_seconds_or_never("max_lifetime", seconds))
