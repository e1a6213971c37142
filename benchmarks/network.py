"""A network between the measured pools and the server, in a process of its own: it delays each way of the data."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from psycopg2.extensions import make_dsn, parse_dsn

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def slow_network(dsn: str, seconds: float) -> Iterator[str]:
    """Yield the DSN of a way to a server that takes ``seconds`` for each round trip."""
    command = [sys.executable, "-m", "benchmarks.network", str(seconds / 2)]
    place = {key: value for key, value in parse_dsn(dsn).items() if key in ("host", "port")}
    network = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own interpreter
    try:
        assert network.stdin is not None  # nosec B101 # noqa: S101 - a pipe, as asked for
        assert network.stdout is not None  # nosec B101 # noqa: S101 - the same
        network.stdin.write(json.dumps(place) + "\n")
        network.stdin.flush()
        port = network.stdout.readline().strip()
        yield make_dsn(dsn, host="127.0.0.1", port=port, sslmode="disable", gssencmode="disable")
    finally:
        network.kill()
        network.communicate()


def serve(host: str, port: str, delay: float) -> None:
    """Print the port at which this process listens, and pass data on between its clients and the server."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            client, _address = listener.accept()
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            server = connect(host, port)
            for way in ((client, server), (server, client)):
                threading.Thread(target=pass_on, args=(*way, delay), daemon=True).start()


def connect(host: str, port: str) -> socket.socket:
    """Connect to the server, over its Unix socket or over TCP."""
    if not host.startswith("/"):
        return socket.create_connection((host, int(port)))
    server = socket.socket(socket.AF_UNIX)
    server.connect(f"{host}/.s.PGSQL.{port}")
    return server


def pass_on(source: socket.socket, target: socket.socket, delay: float) -> None:
    """Pass data on, each piece after a delay. asyncio would round the delay up to whole milliseconds."""
    while data := source.recv(65_536):
        time.sleep(delay)
        target.sendall(data)
    target.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    way = json.loads(sys.stdin.readline())
    serve(way["host"], way["port"], float(sys.argv[1]))
