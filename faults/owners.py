"""Who holds which connection, as those who hold them see it."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg2.extensions import connection


class Owners:
    """Each connection may have one."""

    def __init__(self) -> None:
        self.violations: list[str] = []
        self._owners: dict[int, threading.Thread] = {}

    @contextmanager
    def hold(self, conn: connection) -> Iterator[None]:
        """Hold it; nobody else may."""
        me = threading.current_thread()
        if self._owners.setdefault(id(conn), me) is not me:
            self.violations.append("a connection was lent to two")
        try:
            yield
        finally:
            self._owners.pop(id(conn), None)
