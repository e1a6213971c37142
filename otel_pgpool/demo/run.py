"""One run of the demo: a shop's traffic on a pool of 4 connections, recorded, displayed and reported."""

from __future__ import annotations

import os
import shlex
import sys
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING

import psycopg2

from otel_pgpool import ConnectionPool, otlp
from otel_pgpool.cli.errors import Aborted, CommandError
from otel_pgpool.cli.printing import print_json, print_report
from otel_pgpool.cli.recording import Recording
from otel_pgpool.cli.report import Report, read
from otel_pgpool.cli.terminal import Output, escaped_stderr, make_console, make_line, warn
from otel_pgpool.config import HISTOGRAMS
from otel_pgpool.demo.database import Database
from otel_pgpool.demo.export import set_providers
from otel_pgpool.demo.live import View
from otel_pgpool.demo.postgres import PostgresError, PostgresServer
from otel_pgpool.demo.scenario import Scenario
from otel_pgpool.telemetry import Telemetry

if TYPE_CHECKING:
    from argparse import Namespace

    from otel_pgpool.cli.errors import Interrupts

POOL = "shop"
MINCONN, MAXCONN, WORKERS = 2, 4, 12
LONG_HOLD = 1.0
TIMEOUT = 10.0
FLUSH_TIMEOUT = 1.0
SHUTDOWN_TIMEOUT = 2.5
CLOSE_TIMEOUT = 3.0


class Demo:
    """One run of the demo, with the options of ``otel-pgpool demo``."""

    def __init__(self, options: Namespace, interrupts: Interrupts, stdout: Output) -> None:
        self._options = options
        self._interrupts = interrupts
        self._stdout = stdout
        self._recording = Recording(options.out)
        self._view_output = Output(sys.stderr, "stderr") if options.json else stdout
        self._console = make_console(self._view_output)
        self._view = View(self._console, options.seconds)
        self._warnings: list[str] = []
        self._server_version = ""
        self._undelivered = otlp.Undelivered(0, 0, 0)
        self._report_command = f"{shlex.quote(sys.argv[0])} report {shlex.quote(str(options.out))}"

    def run(self) -> int:
        """Run the scenario, clean up and print the report; return the exit status.

        Raises:
            CommandError: the run could not begin.
            Aborted: a signal came, or the output is closed; everything is cleaned up.
        """
        if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
            raise CommandError("OTEL_SDK_DISABLED is set, so the demo would have no telemetry to show: unset it")
        try:
            try:
                with escaped_stderr() if self._options.dsn else nullcontext(), ExitStack() as stack:
                    self._set_up_and_run(stack)
            finally:
                for warning in self._warnings:
                    warn(f"warning: {warning}")
            with self._interrupts.interruptible():
                self._print(read(self._recording))
        except PostgresError as error:
            raise CommandError(" ".join(str(error).split())) from None
        except Aborted as end:
            if self._view.pool:
                end.partial_output = f"what was recorded is in {self._options.out}/: {self._report_command}"
            raise
        return 1 if self._warnings else 0

    def _set_up_and_run(self, stack: ExitStack) -> None:
        """Set up and run the scenario; register the clean-up with ``stack``."""
        view = stack.enter_context(self._view)
        database = self._open_database(stack)
        try:
            telemetry = Telemetry(spans="always", histograms=HISTOGRAMS)
        except ValueError as error:  # an invalid environment variable
            raise CommandError(str(error)) from None
        providers = set_providers(self._recording, self._options.endpoint)
        stack.callback(self._shut_down, providers)
        pool = self._open_pool(database, telemetry)
        stack.callback(pool.close, CLOSE_TIMEOUT)
        scenario = Scenario(self._options.seconds, pool, database, WORKERS, self._show_step)
        stack.callback(self._stop, scenario, pool, database)
        view.begin(pool)
        with self._interrupts.interruptible():
            scenario.run()
        scenario.close(TIMEOUT)
        view.show_step("exporting the telemetry")
        # Export the totals once more while the pool is open, because a closed pool is not reported.
        providers.flush(FLUSH_TIMEOUT)

    def _show_step(self, title: str) -> None:
        self._view.show_step(title)
        self._view_output.check()

    def _open_database(self, stack: ExitStack) -> Database:
        if self._options.dsn is None:
            self._view.step = "starting PostgreSQL"
            for variable in [name for name in os.environ if name.startswith("PG")]:
                del os.environ[variable]  # these variables are for another server than the embedded one
            server = stack.enter_context(PostgresServer())
            database = Database(server.dsn, option="the embedded PostgreSQL")
        else:
            self._view.step = "connecting"
            database = Database(self._options.dsn)
        with self._interrupts.interruptible():
            database.connect()
        stack.callback(self._drop_tables, database)
        database.make_tables()
        self._server_version = database.server_version
        return database

    def _open_pool(self, database: Database, telemetry: Telemetry) -> ConnectionPool:
        try:
            return ConnectionPool(
                MINCONN,
                MAXCONN,
                database.dsn,
                name=POOL,
                timeout=TIMEOUT,
                # One less than the workers that may wait, so that TooManyRequests occurs.
                max_waiting=WORKERS - MAXCONN - 1,
                long_hold=LONG_HOLD,
                configure=database.configure,
                observer=telemetry,
                **database.connect_options,
            )
        except psycopg2.Error as error:
            raise CommandError(f"the pool cannot connect: {' '.join(str(error).split())}") from None

    def _stop(self, scenario: Scenario, pool: ConnectionPool, database: Database) -> None:
        """End the workers' queries and waits, unless the scenario has run to its end."""
        if not scenario.closing.is_set():
            scenario.closing.set()
            database.end_sessions()
            pool.close(0)
            scenario.close(TIMEOUT)
        failures = scenario.workers.failures[:3]
        self._warnings += [f"a worker failed: {type(failure).__name__}: {failure}" for failure in failures]

    def _drop_tables(self, database: Database) -> None:
        database.end_sessions()  # there are sessions only if the pool could not be closed
        try:
            database.drop_tables()
        except CommandError as error:
            self._warnings.append(str(error))

    def _shut_down(self, providers: otlp.Providers) -> None:
        self._view.step = "exporting the telemetry"
        providers.shutdown(SHUTDOWN_TIMEOUT)
        self._undelivered = providers.undelivered
        if self._view.write_error:
            self._warnings.append(f"{self._options.out}/ is not complete: {self._view.write_error}")

    def _print(self, report: Report) -> None:
        endpoint = self._options.endpoint
        jaeger = endpoint and endpoint.jaeger_search(report.service)
        lost = self._undelivered._asdict()
        if self._options.json:
            facts = {
                "workers": WORKERS,
                "maxconn": MAXCONN,
                "postgresql": self._server_version,
                "files": [str(path) for path in self._recording.files],
                "otlp": endpoint and {"endpoint": endpoint.url, "protocol": endpoint.protocol},
                "undelivered": lost,
                "next": jaeger or self._report_command,
                "warnings": self._warnings,
            }
            print_json(self._stdout, report, facts)
        else:
            run = f"{WORKERS} workers on a pool of {MAXCONN}", f"PostgreSQL {self._server_version}"
            print_report(self._console, report, *run)
            next_steps = {
                "Jaeger": jaeger or "shows the traces of a run with --endpoint http://HOST:4317",
                "report": f"{self._report_command} --slowest 10",
                "files": f"{self._options.out}/ contains the traces, metrics and logs as OTLP JSON lines",
            }
            self._console.print(make_line(("  Where to look next", "bold")))
            for name, step in next_steps.items():  # without wrapping, so that the lines can be copied
                self._console.print(make_line((f"    {name:<7} ", "dim"), step), soft_wrap=True)
        self._stdout.check()
        if endpoint and any(lost.values()):
            counts = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in lost.items())
            where = f"{endpoint.url} ({endpoint.protocol})"
            warn(f"warning: {where} did not accept all of the telemetry; not delivered: {counts}")
