"""Commits, as the connections see them: neither a pool nor its application can be mistaken about these."""

from __future__ import annotations

import threading
from enum import Enum
from time import monotonic
from typing import TYPE_CHECKING, Any

import psycopg2.extensions

from benchmarks.delay import Delay

if TYPE_CHECKING:
    import psycopg


class Commit(Enum):
    """How far the commit of a piece of work has come."""

    UNTRIED = "nobody has asked for it"
    IN_DOUBT = "asked for, and the connection died before the answer"
    REFUSED = "asked for, and the server said no"
    DONE = "the server said yes"


class Here(threading.local):
    """What the calling thread is at."""

    attempt: Any = None


here = Here()


class Telling:
    """A connection that takes down each commit in the attempt of the thread that asks for it."""

    closed: Any

    def commit(self) -> None:
        """Commit, and remember what came of it."""
        attempt = here.attempt
        if attempt is None:
            super().commit()  # type: ignore[misc]  # the driver's
            return
        attempt.commit = Commit.IN_DOUBT
        try:
            super().commit()  # type: ignore[misc]
            attempt.commit = Commit.DONE
        except BaseException:
            if not self.closed:
                attempt.commit = Commit.REFUSED
            raise
        finally:
            attempt.leaving = monotonic()  # the commit takes what the server takes; what follows is the pool's own


class TellingPsycopg2(Telling, psycopg2.extensions.connection):
    """One of psycopg2's."""


class Witnessed(Delay):
    """Has a pool make such connections, by the door that the benchmarks use for slow ones."""

    def psycopg2_factory(self) -> type[psycopg2.extensions.connection]:
        """For psycopg2."""
        return TellingPsycopg2

    def psycopg_class(self) -> type[psycopg.Connection[Any]]:
        """For psycopg_pool."""
        import psycopg

        class TellingPsycopg(Telling, psycopg.Connection[Any]):
            """One of psycopg's."""

        return TellingPsycopg
