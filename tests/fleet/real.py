"""``python -m tests.fleet real``: worker processes behind a real PgBouncer, through each scenario."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING

from tests.fleet.figures import REAL, Figures, fairness, peak, save
from tests.fleet.options import add_options
from tests.fleet.real_server import LOGIN_RETRY, Tier
from tests.fleet.scenarios import SCENARIOS, Event, Scenario
from tests.fleet.worker import MINCONN, Order, Report, run
from tests.support.external_programs import environment, locate_program, missing

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkServerProcess

ENDS_WITHIN = 20.0  # seconds, of one worker
WHOLE = 150
"""Processes of a run whose figures are saved."""
STARTING = 8
"""Workers that start at the same time: of more, some would not get the CPU for a connect within its timeout."""


class Workers:
    """The processes: each is forked from one that has imported all it needs, and makes its own pool."""

    def __init__(self, scenario: Scenario, seed: int, dsn: str) -> None:
        self._scenario = scenario
        self._seed = seed
        self._dsn = dsn
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.fleet.worker"])
        self._generation = 0
        self.live: list[tuple[ForkServerProcess, Connection]] = []
        self._ended: list[tuple[ForkServerProcess, Connection]] = []

    def start_all(self) -> float:
        """Start them, wait for their pools, and return the moment at which their load begins."""
        for number in range(self._scenario.fleet.processes):
            self.live.append(self._start(number))
            if number >= STARTING:
                _receive(self.live[number - STARTING][1])
        for _process, pipe in self.live[-STARTING:]:
            _receive(pipe)
        begin = time.monotonic() + 0.5
        for _process, pipe in self.live:
            pipe.send(begin)
        return begin

    def replace(self, number: int) -> None:
        """End one as gunicorn does, and start another in its place."""
        self._generation += 1
        old = self.live[number]
        _signal(old[0], signal.SIGTERM)
        self._ended.append(old)
        self.live[number] = self._start(number)
        self.live[number][1].send(0.0)

    def disturb(self) -> None:
        """Make the first one leak or flood."""
        _signal(self.live[0][0], signal.SIGUSR1)

    def end_all(self) -> list[Report]:
        """End them and return what they report, those that were replaced too."""
        for process, _pipe in self.live:
            _signal(process, signal.SIGTERM)
        reports = [_report(pipe) for _process, pipe in (*self._ended, *self.live)]
        self.close()
        return reports

    def close(self) -> None:
        """Kill those that still run."""
        for process, pipe in (*self._ended, *self.live):
            process.join(0)
            if process.is_alive():
                process.kill()
            process.join()
            pipe.close()
        self._ended, self.live = [], []

    def _start(self, number: int) -> tuple[ForkServerProcess, Connection]:
        scenario = self._scenario
        is_bad = number == 0 and scenario.event.is_of_one_process
        event = scenario.event if is_bad else Event.NONE
        seed = f"{self._seed}-{number}-{self._generation}"
        order = Order(number, seed, self._dsn, scenario.fleet, event, scenario.disturbance)
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=run, args=(order, theirs), daemon=True)
        process.start()
        theirs.close()
        return process, ours


def _signal(process: ForkServerProcess, number: int) -> None:
    if process.pid is not None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)


def _receive(pipe: Connection) -> object:
    try:
        return pipe.recv()
    except EOFError:
        raise RuntimeError("a worker ended by an error, which is printed above") from None


def _report(pipe: Connection) -> Report:
    """Return the report of one worker, after its word that it is ready if nobody has read that."""
    while pipe.poll(ENDS_WITHIN):
        message = _receive(pipe)
        if isinstance(message, Report):
            return message
    raise TimeoutError(f"a worker did not end within {ENDS_WITHIN:g} s")


def disturb(scenario: Scenario, tier: Tier, workers: Workers, about: dict[str, object]) -> None:
    """Let the event of the scenario happen, and return at its end."""
    end = time.monotonic() + scenario.disturbance
    if scenario.event is Event.ROLLING_RESTART:
        count = scenario.fleet.processes
        for number in range(count):
            workers.replace(number)
            time.sleep(max(0.0, end - (count - 1 - number) * scenario.disturbance / count - time.monotonic()))
    elif scenario.event is Event.POSTGRES_RESTART:
        started = time.monotonic()
        tier.postgres.restart("fast")
        about["seconds from the stop of PostgreSQL until it is ready"] = round(time.monotonic() - started, 3)
    elif scenario.event is Event.PGBOUNCER_AWAY:
        tier.bouncer.kill()
        time.sleep(max(0.0, end - time.monotonic()))
        tier.bouncer.start()
    elif scenario.event in (Event.LEAK, Event.FLOOD):
        workers.disturb()
        time.sleep(scenario.disturbance)


def measure(scenario: Scenario, seed: int, about: dict[str, object]) -> Figures:
    """Run one scenario and return its figures; put what a simulation needs to know into `about`."""
    with tempfile.TemporaryDirectory() as folder, Tier(Path(folder), scenario.fleet.budget) as tier:
        connect = tier.connect_seconds()
        workers = Workers(scenario, seed, tier.bouncer.dsn)
        try:
            begin = workers.start_all()
            time.sleep(max(0.0, begin - time.monotonic()))
            epoch, used = time.time(), tier.cpu()
            time.sleep(scenario.before)
            disturb(scenario, tier, workers, about)
            ended = time.monotonic()
            time.sleep(scenario.after)
            pids = [process.pid for process, _pipe in workers.live if process.pid]
            memory, threads = median(map(_memory, pids)), median(map(_threads, pids))
            finished, used_then = time.time(), tier.cpu()
            reports = workers.end_all()
        finally:
            workers.close()
        served = _served(scenario, reports)
        good = [report for report in reports if report.number in served]
        waits = sorted(wait for report in good for wait in report.waits)
        percentiles = quantiles(waits, n=100, method="inclusive")
        if scenario.event is Event.NONE:
            total = sum(len(report.ends) for report in reports)
            about.update(
                {
                    "seconds of a connect through PgBouncer": connect,
                    "CPU seconds for each checkout": {
                        "worker": sum(report.cpu for report in reports) / total,
                        "PgBouncer": (used_then[0] - used[0]) / total,
                        "PostgreSQL": (used_then[1] - used[1]) / total,
                    },
                }
            )
        return Figures(
            scenario=scenario.name,
            source=REAL,
            processes=scenario.fleet.processes,
            seed=seed,
            served=sum(len(report.ends) for report in reports),
            failed=_failed(reports),
            wait_p50=percentiles[49],
            wait_p99=percentiles[98],
            recovery=_recovery(reports, ended) if scenario.event.is_outage else None,
            logins_peak=peak(tier.logins(), epoch, finished),
            server_connects_peak=peak(tier.server_connects(), epoch, finished),
            server_connections=tier.watch.most,
            fairness=fairness(served.values()),
            memory=round(memory, 1),
            threads=round(threads),
        )


def _served(scenario: Scenario, reports: list[Report]) -> dict[int, int]:
    """Return how many checkouts each process and its successor served, without the one that leaks or floods."""
    served: dict[int, int] = {}
    for report in reports:
        if report.number or not scenario.event.is_of_one_process:
            served[report.number] = served.get(report.number, 0) + len(report.ends)
    return served


def _failed(reports: list[Report]) -> dict[str, int]:
    names = sorted({name for report in reports for name in report.failed})
    return {name: sum(report.failed.get(name, 0) for report in reports) for name in names}


def _recovery(reports: list[Report], ended: float) -> float:
    """Return the seconds from `ended` until each process has served; infinite if one never has."""
    return max(min((end - ended for end in report.ends if end > ended), default=float("inf")) for report in reports)


def _memory(pid: int) -> float:
    return _number(Path(f"/proc/{pid}/smaps_rollup"), "Pss") / 1024


def _threads(pid: int) -> float:
    return _number(Path(f"/proc/{pid}/status"), "Threads")


def _number(path: Path, name: str) -> float:
    match = re.search(rf"^{name}:\s+(\d+)", path.read_text(), re.MULTILINE)
    assert match, path
    return float(match[1])


def _line(figures: Figures, scenario: Scenario) -> str:
    """Return the figures of one run as a line of text."""
    failed = ", ".join(f"{count} {name}" for name, count in figures.failed.items()) or "none"
    recovery = "" if figures.recovery is None else f"all served again after {figures.recovery:.2f} s; "
    return (
        f"{figures.scenario}: served {figures.served}; failed {failed}; {recovery}"
        f"wait p50 {figures.wait_p50 * 1e3:.2f} ms, p99 {figures.wait_p99 * 1e3:.1f} ms; "
        f"at most {figures.logins_peak} logins and {figures.server_connects_peak} server connects in a second, "
        f"{figures.server_connections} of {scenario.fleet.budget} server connections; "
        f"fairness {figures.fairness:.3f}; {figures.memory} MiB and {figures.threads} threads of a process"
    )


def main(arguments: list[str]) -> int:
    """Measure the scenarios, print a line for each, and return 1 if one passed its budget."""
    parser = argparse.ArgumentParser("python -m tests.fleet real", description=__doc__)
    add_options(parser, processes=WHOLE, seed=1)
    given = parser.parse_args(arguments)
    program = locate_program("pgbouncer")
    if program is None:
        print(missing("pgbouncer"), file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started is ended
    chosen = [each.at(given.processes) for each in SCENARIOS if given.scenario in (None, each.name)]
    print(f"real: {given.processes} processes, seed {given.seed}, {program}", flush=True)
    about: dict[str, object] = {
        "command": " ".join(["python -m tests.fleet real", *arguments]),
        "minconn": MINCONN,
        "server_login_retry": LOGIN_RETRY,
        "CPUs": os.cpu_count(),
        "PgBouncer": subprocess.check_output([program, "--version"], env=environment(), text=True).splitlines()[0],
    }
    figures = []
    for scenario in chosen:
        figures.append(measure(scenario, given.seed, about))
        print(_line(figures[-1], scenario), flush=True)
    if given.scenario is None and given.processes == WHOLE:
        save(REAL, figures, **about)
    passed = [
        each.scenario
        for each, scenario in zip(figures, chosen, strict=True)
        if each.server_connections > scenario.fleet.budget
    ]
    if passed:
        print(f"the budget of {chosen[0].fleet.budget} connections was passed: {', '.join(passed)}", file=sys.stderr)
    return 1 if passed else 0
