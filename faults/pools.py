"""The pools that are broken, ours and the peers', behind one face."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace import TracerProvider

from benchmarks.peers import MAKERS, Setup
from benchmarks.row import OURS, PSYCOPG, QUEUEPOOL, STOCK
from faults.tally import Tally
from otel_pgpool import ConnectionPool
from otel_pgpool.telemetry import Telemetry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from benchmarks.peers import Peer

PRE_PING = f"{QUEUEPOOL}, pre_ping"
PEERS = (STOCK, PSYCOPG, PRE_PING)
POOLS = (OURS, *PEERS)


class Ours:
    """Our pool, with every checkout a span that is counted, and told to other ``span_processors`` too."""

    def __init__(self, setup: Setup, options: Mapping[str, Any]) -> None:
        self.spans = Tally()
        self._provider = TracerProvider()
        for processor in (self.spans, *options.get("span_processors", ())):
            self._provider.add_span_processor(processor)
        self.pool = ConnectionPool(
            setup.minconn,
            setup.maxconn,
            setup.dsn,
            timeout=setup.timeout,
            observer=Telemetry(tracer_provider=self._provider),
            **{name: value for name, value in options.items() if name != "span_processors"},
        )
        self.connection = self.pool.connection

    def close(self) -> None:
        """Close the pool, and what counts its spans."""
        self.pool.close()
        self._provider.shutdown()


def make(name: str, setup: Setup, options: Mapping[str, Any]) -> Any:
    """Make one of `POOLS`; the options are for ours."""
    if name == OURS:
        return Ours(setup, options)
    peer: Peer = MAKERS[QUEUEPOOL if name == PRE_PING else name](setup)
    return peer


def capacity(borrow: Callable[[], Any], limit: int, patience: float) -> int:
    """How many connections can be had at once, after all."""
    had = threading.Semaphore(0)
    over = threading.Event()

    def hold() -> None:
        with ExitStack() as held:
            try:
                conn = held.enter_context(borrow())
                with conn.cursor() as cursor:
                    cursor.execute("select 1")
            except Exception:  # noqa: BLE001 - it was not to be had
                return
            had.release()
            over.wait()

    threads = [threading.Thread(target=hold, daemon=True) for _ in range(limit)]
    for thread in threads:
        thread.start()
    found = sum(had.acquire(timeout=patience) for _ in range(limit))
    over.set()
    for thread in threads:
        thread.join(patience)
    return found
