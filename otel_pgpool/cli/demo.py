"""The demo: a shop's traffic on a pool of 4 connections, recorded, displayed and reported."""

from __future__ import annotations

import os
import shlex
import sys
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg2

from otel_pgpool import ConnectionPool, otlp
from otel_pgpool.cli.complaint import complain
from otel_pgpool.cli.database import Database
from otel_pgpool.cli.errors import BrokenOff, CommandError
from otel_pgpool.cli.exporting import export, refuse_disabled_sdk
from otel_pgpool.cli.live import LiveView, PlainView, View
from otel_pgpool.cli.monitor import Monitor
from otel_pgpool.cli.output import Output
from otel_pgpool.cli.postgres import PostgresError, PostgresServer
from otel_pgpool.cli.printing import make_console, print_further, print_json, print_report
from otel_pgpool.cli.recording import Recording
from otel_pgpool.cli.report import Report, read
from otel_pgpool.cli.shop import Shop
from otel_pgpool.cli.story import Story
from otel_pgpool.cli.workers import Workers
from otel_pgpool.config import HISTOGRAMS
from otel_pgpool.telemetry import Telemetry

if TYPE_CHECKING:
    from pathlib import Path

    from otel_pgpool.cli.endpoint import Endpoint
    from otel_pgpool.cli.interrupts import Interrupts

POOL = "shop"
MINCONN, MAXCONN, WORKERS = 2, 4, 12
LONG_HOLD = 1.0
TIMEOUT = 10.0
FLUSH_TIMEOUT = 1.0
SHUTDOWN_TIMEOUT = 2.5
CLOSE_TIMEOUT = 3.0


@dataclass(frozen=True)
class Options:
    """The options of ``otel-pgpool demo``."""

    seconds: float
    dsn: str | None
    endpoint: Endpoint | None
    out: Path
    json: bool


class Demo:
    """One run of the demo."""

    def __init__(self, options: Options, interrupts: Interrupts, stdout: Output) -> None:
        self._options = options
        self._interrupts = interrupts
        self._stdout = stdout
        self._monitor = Monitor(options.seconds)
        self._recording = Recording(options.out)
        self._closing = threading.Event()
        self._shown = Output(sys.stderr, "stderr") if options.json else stdout
        self._console = make_console(self._shown)
        self._warnings: list[str] = []
        self._server_version = ""
        self._undelivered = otlp.Undelivered(0, 0, 0)

    def run(self) -> int:
        """Play the scenario, clean up and print the report; return the exit status.

        Raises:
            CommandError: the run could not begin.
            BrokenOff: a signal came, or the output is closed; everything is cleaned up.
        """
        refuse_disabled_sdk()
        self._claim()
        try:
            self._record()
            with self._interrupts.exposed():
                self._tell(read(self._recording))
        except BrokenOff as end:
            if self._recording.begun:
                end.kept = f"what was recorded is in {self._options.out}/: {self._report_command}"
            raise
        return 1 if self._warnings else 0

    def _claim(self) -> None:
        try:
            self._recording.claim()
        except OSError as error:
            self._recording.disclaim()
            where = error.filename or self._options.out
            raise CommandError(f"--out: {where} cannot be written: {error.strerror}") from None

    def _record(self) -> None:
        try:
            with ExitStack() as stack:
                self._play(stack)
        except PostgresError as error:
            raise CommandError(" ".join(str(error).split())) from None
        finally:
            self._recording.disclaim()
            for warning in self._warnings:
                complain(f"warning: {warning}")

    def _play(self, stack: ExitStack) -> None:
        """Set up and play the scenario; register the clean-up with ``stack``."""
        self._monitor.attach()
        stack.callback(self._monitor.detach)
        view = self._view()
        stack.enter_context(view)
        database = self._open_database(stack)
        providers = export(self._recording, self._options.endpoint)
        providers.tracer_provider.add_span_processor(self._monitor.waits)
        stack.callback(self._shut_down, providers)
        telemetry = self._telemetry()
        self._recording.begin()
        pool = self._open_pool(database, telemetry)
        stack.callback(pool.close, CLOSE_TIMEOUT)
        shop = Shop(pool, self._closing)
        workers = Workers(WORKERS, self._closing)
        stack.callback(self._break_off, workers, pool, database)
        self._monitor.begin(pool)
        story = Story(
            self._options.seconds,
            pool=pool,
            database=database,
            shop=shop,
            workers=workers,
            closing=self._closing,
            tell=lambda title: self._turn(view, title),
            long_hold=LONG_HOLD,
        )
        workers.start()
        with self._interrupts.exposed():
            story.play()
            self._turn(view, "closing")
        self._closing.set()
        workers.join(TIMEOUT)
        view.scene("handing over the telemetry")
        # Export the totals once more while the pool is open, because a closed pool is not reported.
        providers.flush(FLUSH_TIMEOUT)

    def _turn(self, view: View, title: str) -> None:
        view.scene(title)
        self._shown.check()

    def _view(self) -> View:
        if self._console.is_terminal:
            return LiveView(self._console, self._monitor, LONG_HOLD)
        return PlainView(self._console, self._monitor)

    def _open_database(self, stack: ExitStack) -> Database:
        if self._options.dsn is None:
            self._monitor.scene = "starting PostgreSQL"
            for variable in [name for name in os.environ if name.startswith("PG")]:
                del os.environ[variable]  # these variables are for other servers than the embedded one
            server = stack.enter_context(PostgresServer())
            database = Database(server.dsn, option="the embedded PostgreSQL")
        else:
            self._monitor.scene = "connecting"
            database = Database(self._options.dsn)
        stack.callback(database.disconnect)
        with self._interrupts.exposed():
            database.reach()
        stack.callback(self._drop_tables, database)
        database.make_tables()
        self._server_version = database.server_version
        return database

    def _telemetry(self) -> Telemetry:
        try:
            return Telemetry(spans="always", histograms=HISTOGRAMS)
        except ValueError as error:  # an invalid environment variable
            raise CommandError(str(error)) from None

    def _open_pool(self, database: Database, telemetry: Telemetry) -> ConnectionPool:
        try:
            return ConnectionPool(
                MINCONN,
                MAXCONN,
                database.dsn,
                name=POOL,
                timeout=TIMEOUT,
                max_waiting=WORKERS
                - MAXCONN
                - 1,  # one less than the workers that may wait, so that TooManyRequests occurs
                long_hold=LONG_HOLD,
                configure=database.configure,
                observer=telemetry,
                **database.connect_options,
            )
        except psycopg2.Error as error:
            raise CommandError(f"the pool cannot connect: {' '.join(str(error).split())}") from None

    def _break_off(self, workers: Workers, pool: ConnectionPool, database: Database) -> None:
        """End the workers' queries and waits, unless the scenario was played to its end."""
        if not self._closing.is_set():
            self._closing.set()
            database.end_sessions()
            pool.close(0)
            workers.join(TIMEOUT)
        self._warnings += [f"a worker failed: {type(failure).__name__}: {failure}" for failure in workers.failures[:3]]

    def _drop_tables(self, database: Database) -> None:
        database.end_sessions()  # there are sessions only if the pool could not be closed
        try:
            database.drop_tables()
        except CommandError as error:
            self._warnings.append(str(error))

    def _shut_down(self, providers: otlp.Providers) -> None:
        self._monitor.scene = "handing over the telemetry"
        providers.shutdown(SHUTDOWN_TIMEOUT)
        self._undelivered = providers.undelivered
        if self._monitor.write_error:
            self._warnings.append(f"{self._options.out}/ is not complete: {self._monitor.write_error}")

    @property
    def _report_command(self) -> str:
        return f"{shlex.quote(sys.argv[0])} report {shlex.quote(str(self._options.out))}"

    def _tell(self, report: Report) -> None:
        endpoint, out = self._options.endpoint, self._options.out
        undelivered = self._undelivered._asdict()
        further = endpoint.jaeger_search(report.service) if endpoint else self._report_command
        if self._options.json:
            facts = {
                "workers": WORKERS,
                "maxconn": MAXCONN,
                "postgresql": self._server_version,
                "files": [str(path) for path in self._recording.files],
                "otlp": endpoint and {"endpoint": endpoint.url, "protocol": endpoint.protocol},
                "undelivered": undelivered,
                "next": further,
                "warnings": self._warnings,
            }
            print_json(self._stdout, report, facts)
        else:
            run = f"{WORKERS} workers on a pool of {MAXCONN}", f"PostgreSQL {self._server_version}"
            print_report(self._console, report, *run)
            print_further(
                self._console,
                Jaeger=further if endpoint else "with --endpoint http://HOST:4317 the traces are there too",
                report=f"{self._report_command} --slowest 10",
                files=f"{out}/ has its traces, metrics and logs as OTLP JSON lines",
            )
        self._stdout.check()
        if endpoint and any(undelivered.values()):
            lost = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in undelivered.items())
            where = f"{endpoint.url} ({endpoint.protocol})"
            complain(f"warning: {where} did not take all of the telemetry; not delivered: {lost}")
