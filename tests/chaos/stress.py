"""Many threads on one pool, each doing random actions; a seed repeats the random choices."""

from __future__ import annotations

import gc
import random
import time
from collections import Counter, defaultdict
from contextlib import ExitStack, closing
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING

import psycopg2
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint
from opentelemetry.sdk.trace import TracerProvider
from psycopg2.extensions import make_dsn

from otel_pgpool import ConnectionPool, PoolTimeout
from otel_pgpool.telemetry import Telemetry, names
from tests.chaos.checks import TABLE, CommitLog, ProcessUsage, Result, SpanCounter, trim_memory, usage_at_rest
from tests.chaos.monitors import BackendMonitor, LimitMonitor, StallMonitor
from tests.chaos.pools import silence_logs
from tests.chaos.stress_actions import LONG_HOLD, TIMEOUT, Shared, StressThread
from tests.support.servers import ClonedServer

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from psycopg2.extensions import connection


NAME = "otel_pgpool stress"
THREADS, MINCONN, MAXCONN, MAX_WAITING = 64, 2, 8, 60
LONGEST_RESTS = 0.02, 0.4
"""Seconds of the longest rest, lap by lap: in one all connections are held all the time, in the next some are idle."""
LAPS = 10
MIN_LAP = 2.5
"""Seconds of the shortest lap."""
GRACE = 0.25
"""Seconds beyond its timeout from which a caller is late."""
PATIENCE = 10.0
"""Seconds within which the threads and the pool come to rest."""
MAX_GROWTH = 10.0
"""MB between the first lap and the last: what 64 threads leave in the allocator varies."""


@dataclass(frozen=True)
class StressResult:
    """The result of the stress test."""

    seed: int
    seconds: float
    threads: int
    maxconn: int
    counts: dict[str, int]
    """Actions of the threads and their results, as the threads saw them."""
    discarded: dict[str, int]
    """Connections closed by the pool, by reason."""
    created: int
    in_doubt: int
    """Commits that failed because the connection was lost."""
    in_doubt_stored: int
    """Of these, the ones that the server had committed."""
    most_backends: int
    """Server processes whose client was connected, at most."""
    most_backends_at_all: int
    longest_late: float
    """Seconds of the longest call beyond its timeout, without stalls."""
    latest: str
    """The description of that call."""
    longest_stall: float
    """Seconds by which an idle thread was late, at most."""
    resident: list[float]
    """MB at rest after each lap, with the allocator's memory trimmed."""
    threads_left: int
    descriptors_left: int
    found: list[str]
    """Violations that were found during the run."""

    @property
    def grown(self) -> float:
        """MB that were added after the first lap."""
        return self.resident[-1] - self.resident[0]

    @property
    def violations(self) -> list[str]:
        """Return what must not happen, and did."""
        found = [*self.found]
        if self.most_backends > self.maxconn:
            found.append(f"{self.most_backends} backends of at most {self.maxconn}")
        if self.longest_late > GRACE:
            found.append(f"a caller came {self.longest_late:.3f} s late: {self.latest}")
        if self.grown > MAX_GROWTH:
            found.append(f"{self.grown:.1f} MB more after the last lap than after the first")
        if self.threads_left or self.descriptors_left:
            found.append(f"{self.threads_left} threads and {self.descriptors_left} descriptors are left")
        return found

    def lines(self) -> Iterator[str]:
        """Return the section of docs/reliability.md."""
        seen = self.counts
        yield "### Stress"
        yield ""
        yield (
            f"{self.threads} threads act at random on one pool of up to {self.maxconn} connections for "
            f"{self.seconds:g} s (`--seed {self.seed}`). They check out, hold, raise, give up early, use `getconn`, "
            "drop connections, also in cycles, kill backends, drain, resize and check. Whenever all of them rest, "
            "the results of the threads agree with the pool's counters, spans and metrics, and the table contains "
            "exactly the work that was reported as committed."
        )
        yield ""
        yield "| what | figure |"
        yield "| --- | ---: |"
        yield f"| checkouts, each of which ended one span | {seen['asked']:,} |"
        refused = numbers(seen, "served", "timeouts", "too many requests")
        yield f"| served / timed out / refused by `max_waiting` | {refused} |"
        yield f"| pieces of work committed, all of them stored | {seen['committed'] + seen['committed by hand']:,} |"
        yield f"| backends killed / connections that holders lost because of that | {numbers(seen, 'killed', 'lost')} |"
        doubts = f"{self.in_doubt:,} / {self.in_doubt_stored:,}"
        yield f"| commits that failed with their connection / of these, work that was stored | {doubts} |"
        yield f"| drains / resizes | {numbers(seen, 'drain', 'resize')} |"
        yield f"| connections made / reclaimed | {self.created:,} / {self.discarded.get('reclaimed', 0):,} |"
        yield f"| most backends at once | {self.most_backends} |"
        yield f"| the same, including abandoned ones | {self.most_backends_at_all} |"
        yield f"| longest time of a call beyond its timeout, without the machine's stalls | {self.longest_late:.3f} s |"
        yield f"| longest delay of an idle thread of the same process | {self.longest_stall:.3f} s |"
        yield f"| memory at rest after the first / the last lap | {self.resident[0]:.1f} / {self.resident[-1]:.1f} MB |"
        yield f"| threads / file descriptors left | {self.threads_left} / {self.descriptors_left} |"


def numbers(counts: Mapping[str, int], *names: str) -> str:
    """Return some of the counts, side by side."""
    return " / ".join(f"{counts.get(name, 0):,}" for name in names)


class Stress:
    """A pool, its threads and its monitors."""

    def __init__(self, stage: ExitStack, seed: int) -> None:
        self.found: list[str] = []
        self.counts: Counter[str] = Counter()
        self.latest: tuple[float, str] = (0.0, "")
        """The latest call: seconds beyond its timeout, without stalls, and its description."""
        self.server = stage.enter_context(ClonedServer())
        self.span_counter, self.reader = SpanCounter(), InMemoryMetricReader()
        self.commit_log = CommitLog()
        self._seed = seed
        self._admin = stage.enter_context(closing(psycopg2.connect(self.server.dsn, application_name="admin")))
        self._admin.autocommit = True
        execute(self._admin, TABLE)
        tracers, meters = TracerProvider(), MeterProvider([self.reader])
        tracers.add_span_processor(self.span_counter)
        stage.callback(meters.shutdown)
        stage.callback(tracers.shutdown)
        self.before = ProcessUsage.now()
        self.pool = stage.enter_context(
            ConnectionPool(
                MINCONN,
                MAXCONN,
                make_dsn(self.server.dsn, application_name=NAME),
                name="stress",
                timeout=TIMEOUT,
                max_waiting=MAX_WAITING,
                long_hold=LONG_HOLD,
                observer=Telemetry(tracers, meters),
            )
        )
        self.stalls = stage.enter_context(StallMonitor())
        self.backend_monitor = stage.enter_context(BackendMonitor(self.server, NAME, self.pool, MAXCONN))
        self.limits = stage.enter_context(LimitMonitor(self.pool, self.backend_monitor.count))

    def lap(self, number: int, seconds: float) -> None:
        """Run all threads for a while, and check what they leave."""
        self.resize(MAXCONN)
        shared = Shared(
            self.pool, MAXCONN, self.limits, self.kill, self.commit_log, LONGEST_RESTS[number % len(LONGEST_RESTS)]
        )
        rngs = (random.Random(f"{self._seed} {number} {n}") for n in range(THREADS))  # nosec B311
        threads = [StressThread(shared, each) for each in rngs]
        for thread in threads:
            thread.start()
        shared.over.wait(seconds)
        shared.over.set()
        deadline = monotonic() + TIMEOUT + PATIENCE
        for thread in threads:
            thread.join(max(0.0, deadline - monotonic()))
        self.found += shared.holders.violations
        self.found += [f"{thread.name} hangs" for thread in threads if thread.is_alive()]
        for thread in threads:
            self.found += thread.violations
            self.counts += thread.counts
            for what, asked, due, came in thread.late:
                self.latest = max(self.latest, (came - due - self.stalls.within(asked, came), what))
        self.found += [f"after lap {number}: {each}" for each in (*self.unrest(), *self.disagreements())]

    def resize(self, maxconn: int) -> None:
        """Change the upper limit."""
        with self.limits.change(maxconn):
            self.pool.resize(MINCONN, maxconn)

    def kill(self, number: int) -> int:
        """End one of the pool's backends, as an administrator does; return how many were ended."""
        return execute(
            self._admin,
            "select pg_terminate_backend(pid) from (select pid from pg_stat_activity where application_name = %s "
            "order by pid offset %s limit 1) as victim",  # without the inner query the skipped ones would be ended too
            NAME,
            number,
        )

    def unrest(self) -> Iterator[str]:
        """Return what does not come to rest, and which surplus connections remain after the limit is lowered."""
        self.resize(MAXCONN)
        yield from self._unrest(range(MAXCONN + 1))
        try:
            with ExitStack() as all_held:
                for _ in range(MAXCONN):
                    all_held.enter_context(self.pool.connection())
                self.counts += Counter(asked=MAXCONN, served=MAXCONN, committed=MAXCONN)
                self.resize(MINCONN)
        except PoolTimeout as error:
            yield f"not all can be had: {error}"
        yield from self._unrest([MINCONN])

    def _unrest(self, sizes: Collection[int]) -> Iterator[str]:
        """Wait until all connections are idle, as many as given, and each has its backend."""
        deadline = monotonic() + PATIENCE
        while monotonic() < deadline:
            gc.collect()  # finds dropped connections
            self.pool.check()  # finds connections that were killed while they were idle
            stats = self.pool.stats()
            backends = self.backend_monitor.count()
            at_work = stats.used, stats.waiting, stats.connecting
            if at_work == (0, 0, 0) and stats.size == stats.idle == backends and backends in sizes:
                return
            time.sleep(0.01)
        yield f"{self.pool!r}, {stats.size} in all, {backends} backends"

    def disagreements(self) -> Iterator[str]:
        """Return the figures in which the threads, the pool, its spans and its metrics differ."""
        stats, spans, seen = self.pool.stats(), self.span_counter, self.counts
        points = self.points()
        held = sum(stats.checkouts.values())
        figures: dict[str, tuple[object, ...]] = {
            "asked": (
                seen["asked"],
                held + stats.timeouts + stats.errors,
                spans.started[names.SPAN_CHECKOUT],
                spans.ended[names.SPAN_CHECKOUT],
                points[names.METRIC_WAIT_TIME],
            ),
            "served": (seen["served"], held, spans.paths.total(), points[names.METRIC_USE_TIME]),
            "by path": (dict(+Counter(stats.checkouts)), dict(spans.paths)),
            "timeouts": (seen["timeouts"], stats.timeouts, spans.outcomes["timeout"], points[names.METRIC_TIMEOUTS]),
            "errors": (seen["too many requests"], stats.errors, spans.outcomes["error"]),
            "committed": (seen["committed"], spans.outcomes["committed"]),
            "queued": (stats.queued, spans.ended[names.SPAN_WAIT]),
            "connections": (stats.created, sum(stats.discarded.values()) + stats.size, points[names.METRIC_CREATED]),
        }
        for what, told in figures.items():
            if any(each != told[0] for each in told):
                yield f"{what}: {told}"
        if seen["lost"] > seen["killed"]:
            yield f"{seen['lost']} connections were lost to {seen['killed']} kills"

    def points(self) -> dict[str, float]:
        """Return the metrics: the sum of each, or its number of records."""
        sums: dict[str, float] = defaultdict(float)
        data = self.reader.get_metrics_data()
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        sums[metric.name] += point.value if isinstance(point, NumberDataPoint) else point.count
        return sums


def play(seconds: float = 600.0, seed: int | None = None) -> StressResult:
    """Run the stress test in laps."""
    seed = random.SystemRandom().randrange(2**32) if seed is None else seed
    print(
        f"the same random choices again: --seed {seed} --seconds {seconds:g}, or STRESS_SEED={seed} in make test",
        flush=True,
    )
    laps = max(1, min(LAPS, int(seconds / MIN_LAP)))
    resident = []
    with ExitStack() as stage:
        stage.enter_context(silence_logs())
        stress = Stress(stage, seed)
        for number in range(laps):
            stress.lap(number, seconds / laps)
            trim_memory()
            resident.append(ProcessUsage.now().resident)
        stats = stress.pool.stats()
        monitors = stress.limits, stress.backend_monitor, stress.stalls
        for monitor in monitors:
            monitor.__exit__()
        stress.pool.close()
        after = usage_at_rest(stress.before)
        stored = stress.commit_log.stored(stress.server.dsn)
        stress.found += stress.commit_log.violations(stored)
        stress.found += [violation for monitor in monitors for violation in monitor.violations]
        longest_late, latest = stress.latest
        return StressResult(
            seed=seed,
            seconds=seconds,
            threads=THREADS,
            maxconn=MAXCONN,
            counts=dict(stress.counts),
            discarded=dict(stats.discarded),
            created=stats.created,
            in_doubt=stress.commit_log.count(Result.IN_DOUBT),
            in_doubt_stored=stress.commit_log.count(Result.IN_DOUBT, stored),
            most_backends=stress.backend_monitor.most,
            most_backends_at_all=stress.backend_monitor.most_at_all,
            longest_late=longest_late,
            latest=latest,
            longest_stall=stress.stalls.longest,
            resident=resident,
            threads_left=max(0, after.threads - stress.before.threads),
            descriptors_left=max(0, after.descriptors - stress.before.descriptors),
            found=stress.found,
        )


def execute(conn: connection, statement: str, *parameters: object) -> int:
    """Run a statement; return how many rows are true."""
    with conn.cursor() as cursor:
        cursor.execute(statement, parameters or None)
        return sum(bool(yes) for (yes,) in cursor.fetchall()) if cursor.description else 0
