"""What an application was told of each piece of work, to be compared with what the database has."""

from __future__ import annotations

import threading
from enum import IntEnum
from typing import TYPE_CHECKING

import psycopg2

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

TABLE = "create table work (id int primary key)"
INSERT = "insert into work values (%s)"


class Word(IntEnum):
    """What it was told, in the end."""

    FAILED = 0
    """Nothing, or an error, before its commit began: it must not be there."""
    IN_DOUBT = 1
    """The connection was lost during the commit: it may be there."""
    COMMITTED = 2
    """It must be there."""


class Books:
    """One byte for each piece of work, so that hours of it weigh nothing."""

    def __init__(self) -> None:
        self._words = bytearray()
        self._lock = threading.Lock()

    def open(self) -> int:
        """Return a number for new work, which counts as failed until another result is recorded."""
        with self._lock:
            self._words.append(Word.FAILED)
            return len(self._words) - 1

    def say(self, number: int, word: Word) -> None:
        """Note what the application was told."""
        self._words[number] = word

    def count(self, word: Word, among: Iterable[int] | None = None) -> int:
        """How much work was told so, of all or of some."""
        return self._words.count(word) if among is None else sum(self._words[number] == word for number in among)

    def violations(self, stored: Collection[int]) -> Iterator[str]:
        """Each way in which the database has something else."""
        if lost := self.count(Word.COMMITTED) - self.count(Word.COMMITTED, stored):
            yield f"reported as committed and lost: {lost}"
        if silently := self.count(Word.FAILED, stored):
            yield f"reported as failed, or never committed, and stored: {silently}"

    @staticmethod
    def stored(dsn: str) -> set[int]:
        """Return the work that is in the database."""
        conn = psycopg2.connect(dsn)
        with conn, conn.cursor() as cursor:
            cursor.execute("select id from work")
            found = {number for (number,) in cursor.fetchall()}
        conn.close()
        return found
