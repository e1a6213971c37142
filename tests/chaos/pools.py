"""The pools that are broken, ours and the peers', behind one face."""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace import TracerProvider

from benchmarks.peers import MAKERS, Setup
from benchmarks.row import OURS, PSYCOPG, QUEUEPOOL, STOCK
from otel_pgpool import ConnectionPool
from otel_pgpool.telemetry import Telemetry
from tests.chaos.application import text_of
from tests.chaos.commits import Witnessed
from tests.chaos.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from benchmarks.peers import Peer
    from otel_pgpool.observer import Connect
    from otel_pgpool.pool.checkout import Checkout, Slot

PRE_PING = f"{QUEUEPOOL}, pre_ping"
PEERS = (STOCK, PSYCOPG, PRE_PING)
POOLS = (OURS, *PEERS)


class Listener(Telemetry):
    """Our telemetry, which also takes down what the pool meets."""

    def __init__(self, tracer_provider: TracerProvider) -> None:
        super().__init__(tracer_provider)
        self.met: list[str] = []

    def connect_failed(self, connect: Connect) -> None:
        """No connection came of it."""
        self.met.append(f"while it connected: {connect.message}")
        super().connect_failed(connect)

    def discarded(
        self, slots: Sequence[Slot], reason: str, error: BaseException | None, checkout: Checkout | None
    ) -> None:
        """Count discarded connections."""
        self.met.append(f"{reason}: {text_of(error)}")
        super().discarded(slots, reason, error, checkout)


class Ours:
    """Our pool, with every checkout a span that is counted, and told to other ``span_processors`` too."""

    def __init__(self, setup: Setup, options: Mapping[str, Any]) -> None:
        self.spans = Tally()
        self._provider = TracerProvider()
        for processor in (self.spans, *options.get("span_processors", ())):
            self._provider.add_span_processor(processor)
        self.listener = Listener(self._provider)
        self.pool = ConnectionPool(
            setup.minconn,
            setup.maxconn,
            setup.dsn,
            timeout=setup.timeout,
            observer=self.listener,
            **setup.options,
            **{name: value for name, value in options.items() if name != "span_processors"},
        )
        self.connection = self.pool.connection

    def close(self) -> None:
        """Close the pool, and what counts its spans."""
        self.pool.close()
        self._provider.shutdown()


class Committing:
    """A peer whose blocks only give back, with blocks that commit first, as its users write them."""

    def __init__(self, peer: Peer) -> None:
        self._borrow = peer.connection
        self.close = peer.close

    @contextmanager
    def connection(self) -> Iterator[Any]:
        """Borrow a connection for a block."""
        with self._borrow() as conn:
            yield conn
            conn.commit()


def make(name: str, setup: Setup, options: Mapping[str, Any]) -> Any:
    """Make one of `POOLS`, whose connections tell of their commits; the options are for ours."""
    setup = replace(setup, delay=Witnessed())
    if name == OURS:
        return Ours(setup, options)
    peer: Peer = MAKERS[QUEUEPOOL if name == PRE_PING else name](setup)
    return peer if name == PSYCOPG else Committing(peer)


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
