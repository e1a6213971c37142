"""Sizes of a fleet by computation: pools, PgBouncer, and its telemetry."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from otel_pgpool._version import __version__
from otel_pgpool.cli import plan_figures as figures

if TYPE_CHECKING:
    from otel_pgpool.cli.terminal import Output

RESERVED = 3
"""PostgreSQL's default of ``superuser_reserved_connections``."""
SHARE = Fraction(4, 5)
"""The share of PostgreSQL's connections that the pools may have: docs/operations.md, Many hosts."""
RARE = 0.01
"""The share of checkouts that may find no free connection."""
BOUNCERS = 2
"""The fewest PgBouncer processes of which one may restart while the others serve."""
EXACT = 10_000
"""The mean number of connections in use up to which the queue is computed step by step."""
BETA = 2.38
"""The beta of Halfin and Whitt at which `RARE` of the checkouts wait, rounded up."""


@dataclass(frozen=True)
class Load:
    """The load of a fleet."""

    processes: int
    max_connections: int
    arrivals: float
    """Checkouts a second of each process."""
    hold: float
    """Mean seconds of a hold."""


@dataclass(frozen=True)
class Line:
    """One figure of the plan."""

    name: str
    value: float
    formula: str


@dataclass(frozen=True)
class Plan:
    """The figures of a load, and the findings: what cannot be served, or is not needed."""

    load: Load
    findings: tuple[str, ...]
    lines: tuple[Line, ...]


def print_plan(load: Load, stdout: Output, *, as_json: bool) -> None:
    """Print the plan for people, or for programs as one JSON document."""
    plan = make_plan(load)
    if as_json:
        stdout.write(json.dumps({"version": __version__, **asdict(plan)}, indent=2) + "\n")
        return
    rate = load.processes * load.arrivals
    stdout.write(
        f"{load.processes:,} processes, each with {load.arrivals:,g} checkouts a second of {load.hold:g} s: "
        f"{rate:,.0f} a second in all; max_connections {load.max_connections:,}\n\n"
    )
    for finding in plan.findings:
        stdout.write(f"finding: {finding}\n\n")
    for line in plan.lines:
        stdout.write(f"{line.name:<36} {_shown(line.value):>13}  {line.formula}\n")


def _shown(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"


def make_plan(load: Load) -> Plan:
    """Compute the sizes for a load."""
    busy = load.arrivals * load.hold
    budget = max(0, load.max_connections - RESERVED) * SHARE.numerator // SHARE.denominator
    maxconn = connections_for(busy)
    clients = load.processes * (maxconn + 1)
    lines = (
        Line("connections in use, each process", busy, "arrivals * hold (Little's law)"),
        Line("connections in use, all", load.processes * busy, "processes * arrivals * hold"),
        Line("maxconn of each pool", maxconn, f"the fewest with P(wait) ≤ {RARE:.0%} by Erlang C; at least 1"),
        Line("connections for the pools", budget, f"{float(SHARE):g} * (max_connections - {RESERVED}), rounded down"),
        *_pgbouncer_lines(clients, budget),
        *_metrics_lines(load),
        *_span_lines(load),
    )
    return Plan(load, tuple(_findings(load, budget, clients)), lines)


def connections_for(busy: float) -> int:
    """Return the fewest connections with which a checkout waits with a probability of at most `RARE`.

    Erlang C (A. K. Erlang, 1917) for a mean of ``busy`` connections in use; above `EXACT` the square-root rule of
    Halfin and Whitt (1981), busy + beta * sqrt(busy).
    """
    if busy > EXACT:
        return math.ceil(busy + BETA * math.sqrt(busy))
    blocked, count = 1.0, 0  # Erlang B, by its recursion
    while True:
        count += 1
        blocked = busy * blocked / (count + busy * blocked)
        if count > busy:
            used = busy / count
            if blocked / (1 - used * (1 - blocked)) <= RARE:
                return count


def _findings(load: Load, budget: int, clients: int) -> list[str]:
    """Return what cannot be served, or is not needed."""
    rate, in_use = load.processes * load.arrivals, load.processes * load.arrivals * load.hold
    if in_use >= budget:
        most = RESERVED + math.ceil((math.floor(in_use) + 1) / SHARE)
        finding = (
            f"{in_use:,.0f} connections would be in use at a time ({load.processes:,} * {load.arrivals:,g} * "
            f"{load.hold:g}), and the pools may have {budget:,}: the queue grows without end, whatever the sizes. "
            f"Needed is max_connections of at least {most:,}"
        )
        if budget:
            finding += (
                f", or holds below {budget / rate:.3g} s, or arrivals below "
                f"{budget / (load.processes * load.hold):.3g} a second for each process. If --arrivals was meant for "
                f"the whole fleet, give {load.arrivals / load.processes:.3g}"
            )
        return [f"{finding}."]
    if clients <= budget:
        return [f"at most {clients:,} connections are opened, which is within {budget:,}: PgBouncer is not needed."]
    if (needed := connections_for(in_use)) > budget:
        return [f"waits for the server are not rare: that takes {needed:,} connections, and {budget:,} are allowed."]
    return []


def _pgbouncer_lines(clients: int, budget: int) -> tuple[Line, ...]:
    bouncers = max(1, min(BOUNCERS, budget))
    pool = max(1, budget // bouncers)
    reserve = pool // 10
    return (
        Line("PgBouncer: processes", bouncers, "2, so that one can restart; more if one uses its whole core"),
        Line("PgBouncer: max_db_connections", pool, "connections for the pools / processes of PgBouncer"),
        Line("PgBouncer: reserve_pool_size", reserve, "a tenth of max_db_connections"),
        Line("PgBouncer: default_pool_size", pool - reserve, "max_db_connections - reserve_pool_size"),
        Line(
            "PgBouncer: max_client_conn",
            2 * clients,
            "2 * processes * (maxconn + 1 that asks about long holds); a deployment doubles them",
        ),
    )


def _metrics_lines(load: Load) -> list[Line]:
    lines = []
    for kind, each in figures.SERIES.items():
        series = load.processes * each
        lines.append(Line(f"series, {kind}", series, f"processes * {each}; twice as many after a deployment"))
        samples = series / figures.EXPORT_SECONDS
        lines.append(Line(f"samples a second, {kind}", samples, f"series / {figures.EXPORT_SECONDS} s of an export"))
        base, process = figures.MEMORY[kind]
        formula = f"{base} + {process} * processes, measured at 2,000; more after a deployment"
        lines.append(Line(f"MB of Prometheus, {kind}", base + process * load.processes, formula))
    return lines


def _span_lines(load: Load) -> tuple[Line, ...]:
    rate = load.processes * load.arrivals
    return (
        Line("spans a second", rate * figures.SPANS_A_CHECKOUT, f"checkouts * {figures.SPANS_A_CHECKOUT}"),
        Line(
            "cores of the agents, all",
            math.ceil(rate / figures.AGENT_CHECKOUTS),
            f"checkouts a second / {figures.AGENT_CHECKOUTS:,}",
        ),
        Line(
            "gateways of one core",
            max(2, math.ceil(rate / figures.GATEWAY_CHECKOUTS)),
            f"checkouts a second / {figures.GATEWAY_CHECKOUTS:,}, at least 2; needs a greater num_traces. With "
            "OTEL_PGPOOL_SPANS=slow, * the share of slow checkouts",
        ),
    )
