"""Access to the sockets of connections, which belong to a driver."""

from __future__ import annotations

import os
import socket
from contextlib import suppress


def replace_socket(fileno: int) -> None:
    """Replace a socket, in this process, by one that is not connected.

    The descriptor stays in use, because an object that owns it closes it later.
    """
    with socket.socket() as dead:
        os.dup2(dead.fileno(), fileno, inheritable=False)


def local_port(fileno: int) -> int:
    """Return the port of this end of a TCP connection; 0 for another kind of socket."""
    with suppress(OSError):
        borrowed = socket.socket(fileno=fileno)
        try:
            return int(borrowed.getsockname()[1]) if borrowed.family in (socket.AF_INET, socket.AF_INET6) else 0
        finally:
            borrowed.detach()
    return 0
