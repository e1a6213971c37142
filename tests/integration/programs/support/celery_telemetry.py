"""What the recipe of Celery adds to a program, as a module of its own: ``celery --include celery_telemetry``."""

from __future__ import annotations

from typing import Any

from celery.signals import worker_process_init, worker_process_shutdown

from otel_pgpool import PgPoolInstrumentor, otlp

PgPoolInstrumentor().instrument()
providers: Any = None


@worker_process_init.connect
def begin(**_: Any) -> None:
    global providers  # noqa: PLW0603 - one for the process, as in the recipe
    providers = otlp.configure("payments")


@worker_process_shutdown.connect
def end(**_: Any) -> None:
    providers.shutdown()
