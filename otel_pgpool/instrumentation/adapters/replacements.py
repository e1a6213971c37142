"""Replacements of classes' attributes, which can be undone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class Replacements:
    """The attributes that one adapter has replaced."""

    def __init__(self) -> None:
        self._replaced: list[tuple[type, str, Any, Any]] = []  # class, attribute, original or None if inherited, new

    def wrap(self, owner: type, name: str, wrap: Callable[[Any], Any]) -> None:
        """Replace a method of a class, or one that it inherits, by what ``wrap`` makes of the method."""
        self.set(owner, name, wrap(getattr(owner, name)))

    def set(self, owner: type, name: str, value: Any) -> None:
        """Set an attribute of a class."""
        before = vars(owner).get(name)
        setattr(owner, name, value)
        self._replaced.append((owner, name, before, value))

    def restore(self) -> None:
        """Restore the originals, except where third-party code has replaced the attribute since."""
        for owner, name, before, now in reversed(self._replaced):
            if name not in vars(owner) or vars(owner)[name] is not now:
                continue
            if before is None:
                delattr(owner, name)
            else:
                setattr(owner, name, before)
