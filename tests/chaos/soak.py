"""A million checkouts whose telemetry is exported: what grows with them?"""

from __future__ import annotations

import os
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING

from otel_pgpool import ConnectionPool, otlp
from otel_pgpool.telemetry import names
from tests.chaos.checks import ProcessUsage, usage_at_rest
from tests.chaos.otlp_receiver import CountingReceiver
from tests.support.servers import ClonedServer

if TYPE_CHECKING:
    from collections.abc import Iterator


POOLS, THREADS, MAXCONN = 2, 2, 1
"""Two pools, so that each has series of its own; more threads than connections, so that some wait."""
LOOKS = 10
LONGEST_TENTH = 600.0
"""Seconds between two measurements, at most."""
MAX_GROWTH = 3.0
"""MB: by as much the memory of a process at rest varies."""
MAX_UNDELIVERED = 1_500
"""Spans that may wait for their export; the SDK drops what exceeds 2,048."""
EXPORTERS = 3
"""Exporters of spans, metrics and logs, each of which opens a connection."""
ENVIRONMENT = {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", "OTEL_METRIC_EXPORT_INTERVAL": "1000"}


@dataclass
class SoakResult:
    """The result of the soak."""

    checkouts: int
    seconds: float = 0.0
    at: list[int] = field(default_factory=list)
    """Checkouts at each measurement of the following."""
    resident: list[float] = field(default_factory=list)
    """MB of memory."""
    threads: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)
    series: list[int] = field(default_factory=list)
    """Pairs of a metric and an attribute set in the last export; 0 before the first."""
    series_twice: int = 0
    """Points of one export that had the metric and the attributes of another."""
    exports: int = 0
    """Exports of metrics."""
    spans: int = 0
    """Spans of checkouts that have arrived."""
    undelivered: int = 0
    """Spans that have not arrived."""
    threads_left: int = 0
    descriptors_left: int = 0
    found: list[str] = field(default_factory=list)
    """Violations that were found during the run."""

    def measure(self, done: int, series: int) -> None:
        """Measure this process."""
        now = ProcessUsage.now()
        self.at.append(done)
        self.resident.append(now.resident)
        self.threads.append(now.threads)
        self.descriptors.append(now.descriptors)
        self.series.append(series)

    @property
    def grown(self) -> float:
        """MB that were added after the first measurement."""
        return self.resident[-1] - self.resident[0]

    @property
    def violations(self) -> list[str]:
        """Return what must not happen, and did."""
        found = [*self.found]
        if self.grown > MAX_GROWTH:
            found.append(f"{self.grown:.1f} MB more after the last checkouts than after the first")
        if len(set(self.threads)) > 1:
            found.append(f"threads come and go: {self.threads}")
        if max(self.descriptors) > self.descriptors[0] + EXPORTERS:
            found.append(f"descriptors: {self.descriptors}")
        # Before the first export there are no series.
        if len({series for series in self.series if series}) != 1 or not self.series[-1] or not self.exports:
            found.append(f"series come and go, or never come: {self.series} in {self.exports} exports")
        if self.series_twice:
            found.append(f"{self.series_twice} series came twice")
        if self.spans != self.checkouts or self.undelivered:
            found.append(f"{self.spans} spans of {self.checkouts} checkouts, {self.undelivered} undelivered")
        if self.threads_left or self.descriptors_left:
            found.append(f"{self.threads_left} threads and {self.descriptors_left} descriptors are left")
        return found

    def lines(self) -> Iterator[str]:
        """Return the section of docs/reliability.md."""
        yield "### Soak"
        yield ""
        yield (
            f"{self.checkouts:,} checkouts of {POOLS} pools in {self.seconds:,.0f} s, each with a query and a span, "
            f"are exported by `otlp.configure()` over HTTP to an endpoint in another process, with {self.exports:,} "
            f"exports of metrics. {self.spans:,} spans of checkouts arrived. Points that one export contained twice: "
            f"{self.series_twice}. Between the first row and the last, the memory changed by "
            f"{self.grown:+.1f} MB."
        )
        yield ""
        yield "| checkouts | memory (MB) | threads | file descriptors | series |"
        yield "| ---: | ---: | ---: | ---: | ---: |"
        for at, *rest in zip(self.at, self.resident, self.threads, self.descriptors, self.series, strict=True):
            yield "| {:,} | {:.1f} | {} | {} | {} |".format(at, *rest)


def play(checkouts: int = 1_000_000) -> SoakResult:
    """Run the soak. It sets the process's providers, so it needs a process of its own."""
    result = SoakResult(checkouts)
    with ExitStack() as stage:
        server = stage.enter_context(ClonedServer())
        receiver = stage.enter_context(CountingReceiver())
        os.environ.update(ENVIRONMENT, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint)
        before = ProcessUsage.now()
        providers = stage.enter_context(otlp.configure("soak"))
        pools = [ConnectionPool(1, MAXCONN, server.dsn, name=f"soak-{n}") for n in range(POOLS)]
        began = monotonic()
        work(result, pools, providers, receiver)
        result.seconds = monotonic() - began
        for pool in pools:
            pool.close()
        providers.shutdown(30)
        counts = receiver.counts()
        result.spans, result.undelivered = counts["spans"].get(names.SPAN_CHECKOUT, 0), providers.undelivered.spans
        result.series_twice, result.exports = counts["twice"], counts["exports"]
        after = usage_at_rest(before)
        result.threads_left = max(0, after.threads - before.threads)
        result.descriptors_left = max(0, after.descriptors - before.descriptors)
    return result


def work(
    result: SoakResult, pools: list[ConnectionPool], providers: otlp.Providers, receiver: CountingReceiver
) -> None:
    """Let all threads check out until the goal is reached, and measure the process after each tenth."""
    goal, over = result.checkouts, threading.Event()

    def check_out(pool: ConnectionPool) -> None:
        try:
            while not over.is_set():
                use(pool, providers)
        except Exception as error:  # noqa: BLE001 - any error ends the soak
            result.found.append(repr(error))
            over.set()

    threads = [threading.Thread(target=check_out, args=(pool,)) for pool in pools for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for look in range(1, LOOKS + 1):
        deadline = monotonic() + LONGEST_TENTH
        while served(pools) < goal * look // LOOKS and monotonic() < deadline and not over.wait(0.02):
            pass
        if monotonic() > deadline:
            result.found.append(f"{served(pools):,} checkouts, and no tenth more in {LONGEST_TENTH:g} s")
            over.set()
        result.measure(served(pools), len(receiver.counts()["series"]))
        print(f"{result.at[-1]:,} checkouts, {result.resident[-1]:.1f} MB", flush=True)
        if over.is_set():
            break
    over.set()
    for thread in threads:
        thread.join()
    result.checkouts = served(pools)


def use(pool: ConnectionPool, providers: otlp.Providers) -> None:
    """Check out once, unless too many spans wait for their export."""
    if providers.undelivered.spans > MAX_UNDELIVERED:
        time.sleep(0.002)
    else:
        with pool.connection() as conn, conn.cursor() as cursor:
            cursor.execute("select 1")


def served(pools: list[ConnectionPool]) -> int:
    """Return the number of checkouts of all pools."""
    return sum(sum(pool.stats().checkouts.values()) for pool in pools)
