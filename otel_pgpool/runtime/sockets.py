"""Sockets of a parent process in its forked child."""

from __future__ import annotations

import os
import socket


def replace_socket(fileno: int) -> None:
    """Replace a socket, in this process, by one that is not connected.

    The descriptor stays in use, because an object that owns it closes it later.
    """
    with socket.socket() as dead:
        os.dup2(dead.fileno(), fileno, inheritable=False)
