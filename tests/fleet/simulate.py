"""``python -m tests.fleet simulate``: the scenarios with simulated processes, and what jitter and settings change."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from tests.fleet.figures import MEASURED, REAL, SIMULATED, Figures, load, save
from tests.fleet.options import add_options
from tests.fleet.scenarios import SCENARIOS, Event, Scenario
from tests.fleet.simulation.run import simulate
from tests.fleet.simulation.server import Costs

if TYPE_CHECKING:
    from collections.abc import Sequence

SIZES = (150, 500, 1000, 2000)
OUTAGES = (8.5, 11.0)
"""Seconds of an outage: without jitter the attempts coincide, so that the moment of its end matters."""
TOLERANCE = 0.2
LEAST_WAIT = 0.001
"""Seconds of a wait below which two runs are not compared."""
COMPARED = (
    "served", "wait_p50", "wait_p99", "recovery", "logins_peak", "server_connects_peak", "server_connections",
    "fairness",
)  # fmt: skip
AWAY = Scenario(Event.PGBOUNCER_AWAY, before=6.0, after=6.0)
RESTART = Scenario(Event.POSTGRES_RESTART, before=6.0, after=18.0)


def main(arguments: list[str]) -> int:
    """Run the simulation; return 1 if it deviates from the real runs by more than the tolerance."""
    options = _parse(arguments)
    seed = options.seed
    print(f"seed {seed}")
    began = time.monotonic()
    figures = []
    for scenario in SCENARIOS:
        if options.scenario in {None, scenario.name}:
            figures.append(simulate(scenario.at(options.processes), seed))
            print(figures[-1], flush=True)
    if options.scenario is not None or options.processes != SIZES[0]:
        return 0  # a part: the file keeps the whole
    comparison = compare(load(REAL), figures) if (MEASURED / f"{REAL}.json").exists() else []
    growth = [_growth(processes, seed, jitter=jitter) for processes in SIZES for jitter in (True, False)]
    settings = [_setting(*pair, seed) for pair in PAIRS]
    seconds = round(time.monotonic() - began)
    about: dict[str, Any] = {"comparison": comparison, "growth": growth, "settings": settings}
    save(SIMULATED, figures, seed=seed, seconds=seconds, costs=asdict(Costs()), **about)
    for row in [each for each in comparison if each["is_out"]]:
        print(f"more than {TOLERANCE:.0%} from the real run: {row}")
    return int(any(row["is_out"] for row in comparison))


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fleet simulate", description=__doc__)
    add_options(parser, processes=SIZES[0], seed=17)
    return parser.parse_args(arguments)


def compare(real: Sequence[Figures], simulated: Sequence[Figures]) -> list[dict[str, Any]]:
    """Return the figures of real and simulated runs of the same scenarios, with the deviation of each."""
    rows = []
    by_name = {each.scenario: each for each in simulated}
    for each in real:
        other = by_name.get(each.scenario)
        if other is None or other.processes != each.processes:
            continue
        for name in COMPARED:
            first, second = getattr(each, name), getattr(other, name)
            if first is None and second is None:
                continue
            if name.startswith("wait") and max(first, second) < LEAST_WAIT:
                continue
            deviation = None if first is None or second is None else abs(second - first) / max(abs(first), 1e-9)
            is_out = first != second and (deviation is None or deviation > TOLERANCE)
            row = {"scenario": each.scenario, "figure": name, "real": first, "simulated": second}
            rows.append({**row, "deviation": None if deviation is None else round(deviation, 3), "is_out": is_out})
    return rows


def _growth(processes: int, seed: int, *, jitter: bool) -> dict[str, Any]:
    """Return the worst figures of several outages of PgBouncer."""
    scenario = AWAY.at(processes)
    runs = [simulate(replace(scenario, disturbance=seconds), seed, jitter=jitter) for seconds in OUTAGES]
    row = {
        "processes": processes,
        "jitter": jitter,
        "budget": scenario.fleet.budget,
        "server_connections": max(each.server_connections for each in runs),
        "logins_peaks": [each.logins_peak for each in runs],
        "recoveries": [each.recovery for each in runs],
    }
    print(row, flush=True)
    return row


PAIRS: tuple[tuple[str, str, Scenario, tuple[Costs, Costs]], ...] = (
    (
        "server_login_retry of PgBouncer",
        "15 s (its default) and 1 s",
        RESTART,
        (Costs(server_login_retry=15.0), Costs(server_login_retry=1.0)),
    ),
    (
        "max_client_conn of PgBouncer",
        "1,500 and 20,000",
        replace(AWAY, disturbance=8.5),
        (Costs(max_client_conn=1500), Costs(max_client_conn=20_000)),
    ),
)
"""What breaks first at 2,000 processes: a setting, its two values, the scenario, and the server with each value."""


def _setting(name: str, values: str, scenario: Scenario, costs: tuple[Costs, Costs], seed: int) -> dict[str, Any]:
    """Return what a setting changes for the largest fleet."""
    runs = [simulate(scenario.at(SIZES[-1]), seed, costs=each) for each in costs]
    row: dict[str, Any] = {"setting": name, "values": values, "scenario": scenario.name, "processes": SIZES[-1]}
    row["recoveries"] = [each.recovery for each in runs]
    row["failed"] = [sum(each.failed.values()) for each in runs]
    row["served"] = [each.served for each in runs]
    print(row, flush=True)
    return row
