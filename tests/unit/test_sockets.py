"""A socket of the parent, replaced in a forked child."""

from __future__ import annotations

import socket

import pytest

from otel_pgpool.runtime.sockets import replace_socket


def test_a_replaced_socket() -> None:
    """The descriptor stays in use, and the peer sees neither bytes nor the end of the connection."""
    mine, peer = socket.socketpair()
    kept = mine.dup()  # the parent's
    with mine, peer, kept:
        replace_socket(mine.fileno())
        with pytest.raises(OSError, match=r"not connected|Broken pipe"):
            mine.send(b"x")
        mine.close()
        kept.send(b"y")
        assert peer.recv(10) == b"y"
