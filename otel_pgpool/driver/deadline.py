"""A time limit for libpq's blocking calls: when it has passed, shutting down the socket makes libpq return."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

import psycopg2

from otel_pgpool.runtime.deadline import SocketDeadline

if TYPE_CHECKING:
    from psycopg2.extensions import connection

IO_DEADLINE = 5.0
"""Seconds for each ping, check, rollback at a release, reset and close."""


class NoAnswer(psycopg2.OperationalError):
    """Raised for a connection that the pool has cut, because its server did not answer in time.

    libpq says of such a connection that the server closed it, which the server did not do.
    """

    @classmethod
    def within(cls, seconds: float) -> NoAnswer:
        """Return the error for a time limit."""
        return cls(f"no answer within {seconds:.3g} s")


class Deadline(SocketDeadline):
    """A time limit for the calls in a ``with Deadline(conn, seconds)`` block; ``expired`` is True if it passed."""

    __slots__ = ()

    def __init__(self, conn: connection, seconds: float = IO_DEADLINE) -> None:
        super().__init__(conn, seconds)

    def descriptor(self) -> int | None:
        """Return the descriptor of the socket; None for a closed connection, which has nothing that could block."""
        with suppress(psycopg2.Error):
            return super().descriptor()
        return None


def shutdown_socket(conn: connection) -> None:
    """Shut the socket of a connection down, so that a call in another thread returns and closing does not block."""
    with suppress(psycopg2.Error, OSError):
        number = conn.fileno()
        with socket.socket(fileno=os.dup(number)) as duplicate:
            if conn.fileno() == number:  # otherwise libpq has closed it, and another file may have the number
                duplicate.shutdown(socket.SHUT_RDWR)
