"""The same crowd, on a pool that waits by itself."""

from gevent import monkey

monkey.patch_all()

import os

from crowd import CONNECTIONS, run

from otel_pgpool import ConnectionPool

if __name__ == "__main__":
    run(ConnectionPool(CONNECTIONS, CONNECTIONS, os.environ["DATABASE_URL"]))
