"""Who holds which connection, as those who hold them see it."""

from __future__ import annotations

import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg2.extensions import connection


class Owners:
    """Each connection may have one: a block that holds it, or its own last reference."""

    def __init__(self) -> None:
        self.violations: list[str] = []
        self._owners: dict[int, object] = {}  # by the id of the connection

    @contextmanager
    def hold(self, conn: connection) -> Iterator[None]:
        """Hold it; nobody else may."""
        owner = object()
        self._own(conn, owner)
        try:
            yield
        finally:
            self._disown(id(conn), owner)

    def hold_until_gone(self, conn: connection) -> None:
        """Hold it for as long as it lives, for somebody who drops it.

        The reference speaks before the memory is free: no new connection has this one's id by then.
        """
        number = id(conn)
        self._own(conn, weakref.ref(conn, lambda gone: self._disown(number, gone)))

    def _own(self, conn: connection, owner: object) -> None:
        if self._owners.setdefault(id(conn), owner) is not owner:
            self.violations.append("a connection was lent to two")

    def _disown(self, number: int, owner: object) -> None:
        if self._owners.get(number) is owner:  # and not whoever had it already
            del self._owners[number]
