"""A dictionary of values by object, for objects of any class of the application."""

from __future__ import annotations

import weakref
from typing import Any, Generic, TypeVar

ValueT = TypeVar("ValueT")


class WeakIdentityDict(Generic[ValueT]):
    """A dictionary that compares its keys by identity, and does not keep them alive.

    Unlike those of a ``WeakKeyDictionary``, a key need not be hashable, and may be equal to another one.
    """

    def __init__(self) -> None:
        self._entries: dict[int, tuple[weakref.ref[Any], ValueT]] = {}  # by id

    def __contains__(self, key: object) -> bool:
        """Return whether there is a value of an object."""
        entry = self._entries.get(id(key))
        return entry is not None and entry[0]() is key

    def __len__(self) -> int:
        """Return the number of values."""
        return len(self._entries)

    def __setitem__(self, key: object, value: ValueT) -> None:
        """Set the value of an object."""
        number, entries = id(key), self._entries

        def remove(ref: object) -> None:
            entry = entries.get(number)
            if entry is not None and entry[0] is ref:  # otherwise the number is that of a later object
                entries.pop(number, None)

        entries[number] = weakref.ref(key, remove), value

    def get(self, key: object) -> ValueT | None:
        """Return the value of an object; None if there is none."""
        entry = self._entries.get(id(key))
        return entry[1] if entry is not None and entry[0]() is key else None

    def pop(self, key: object) -> ValueT | None:
        """Remove and return the value of an object; None if there is none."""
        return self._entries.pop(id(key))[1] if key in self else None
