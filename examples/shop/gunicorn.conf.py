"""How gunicorn serves the shop: what has threads or sockets begins in the worker, after the fork."""

from __future__ import annotations

import os
from typing import Any

from app import make_tables, pool

from otel_pgpool import otlp

wsgi_app = "app:app"
bind = os.environ.get("BIND", "127.0.0.1:8000")
worker_class = "gthread"
threads = 24  # three for each connection of the pool, so that some have to wait
preload_app = True
control_socket_disable = True  # it lies in a home, and the image's user has none; before gunicorn 25.1 it is ignored


def post_fork(_server: Any, _worker: Any) -> None:
    """Each worker has its own telemetry and its own connections."""
    otlp.configure(None if "OTEL_SERVICE_NAME" in os.environ else "shop")
    pool.open()
    make_tables()


def worker_exit(_server: Any, _worker: Any) -> None:
    """Give the connections back to the server."""
    pool.close()
