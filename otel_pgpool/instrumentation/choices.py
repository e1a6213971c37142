"""The pools that the application has chosen one by one, to be observed or not."""

from __future__ import annotations

import weakref
from typing import Any


class Choices:
    """The pools that ``instrument_pool`` has selected and ``uninstrument_pool`` has excluded, until ``uninstrument()``.

    If a pool has an owner, as an engine is, the choice applies to the owner too, because the owner may replace the
    pool.
    """

    def __init__(self) -> None:
        self._selected: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()  # by id
        self._excluded: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()

    def select(self, pool: Any, owner: Any = None) -> None:
        """Select a pool of any kind to be observed."""
        for each in _both(pool, owner):
            self._excluded.pop(id(each), None)
            self._selected[id(each)] = each

    def exclude(self, pool: Any, owner: Any = None) -> None:
        """Exclude a pool of any kind from the observation."""
        for each in _both(pool, owner):
            self._selected.pop(id(each), None)
            self._excluded[id(each)] = each

    def of(self, pool: Any, owner: Any = None) -> bool | None:
        """Return whether a pool is selected; False if it is excluded, None if its kind decides."""
        for chosen in (self._selected, self._excluded):
            if any(chosen.get(id(each)) is each for each in _both(pool, owner)):
                return chosen is self._selected
        return None

    def is_any_selected(self) -> bool:
        """Return whether any pool is selected."""
        return len(self._selected) > 0


def _both(pool: Any, owner: Any) -> tuple[Any, ...]:
    return (pool,) if owner is None else (pool, owner)
