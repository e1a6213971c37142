"""The shop without Docker: a PostgreSQL of its own, gunicorn and the customers, until Ctrl-C. ``make shop``."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import psycopg2

from otel_pgpool.demo.endpoint import place
from otel_pgpool.demo.postgres import PostgresServer

HERE = Path(__file__).parent


def make_role(superusers: str) -> str:
    """Make the role that the shop has in the stack too, the owner of a schema; the URL to log in with."""
    password = secrets.token_urlsafe(24)
    with closing(psycopg2.connect(superusers)) as conn, conn.cursor() as cur:
        cur.execute("create role shop login password %s", (password,))
        cur.execute("create schema authorization shop")
        conn.commit()
    return f"postgresql://shop:{password}@{superusers.rpartition('@')[2]}"


def main() -> int:
    """Start all three, and end them together; gunicorn's exit status."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    address = os.environ.setdefault("BIND", "127.0.0.1:8000")
    endpoint = place(os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4317"))
    with ExitStack() as running:
        database = make_role(running.enter_context(PostgresServer()).dsn)
        web, load = (
            # Sessions of their own: Ctrl-C ends this program, which ends them. gunicorn may hang if both tell it.
            running.enter_context(
                subprocess.Popen(
                    [sys.executable, *program], cwd=HERE, env={**os.environ, **environment}, start_new_session=True
                )
            )
            for program, environment in (
                (["-m", "gunicorn"], {"DATABASE_URL": database}),  # which has the password: others may see arguments
                (["load.py", f"http://{address}"], {}),
            )
        )
        running.callback(load.terminate)
        running.callback(web.terminate)
        print(f"The shop is at http://{address}; its telemetry goes to {endpoint}. Ctrl-C ends it.", flush=True)
        with suppress(KeyboardInterrupt):
            return web.wait()
        return 0


if __name__ == "__main__":
    sys.exit(main())
