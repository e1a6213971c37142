"""The part of docs/fleet.md about telemetry, from the measured figures."""

from __future__ import annotations

import json
from typing import Any

from otel_pgpool.cli import plan_figures
from tests.fleet.telemetry import FILE, FLEET

ARRIVALS = 500
"""Checkouts a second of each process."""


def section() -> str:
    """Return the part, in Markdown."""
    measured = json.loads(FILE.read_text())
    parts = ("## Telemetry of a fleet", _prometheus(measured["prometheus"]), _collector(measured["collector"]))
    return "\n\n".join((*parts, _sampling(measured["sampling"]), _gateways(measured["collector"]))) + "\n"


def _prometheus(prometheus: dict[str, Any]) -> str:
    rows = [row for kind in plan_figures.SERIES for row in _memory_rows(kind, prometheus[kind])]
    head = ("| histograms | processes | series | resident memory, MiB |", "| --- | ---: | ---: | ---: |")
    table = "\n".join((*head, *rows))
    return f"""\
`PROMETHEUS=... OTELCOL=... python -m tests.fleet telemetry` measured these figures.
What the two variables do not name is left out, and the last figures stay.

A Prometheus {prometheus["version"]} was sent an hour of exports of a real pool at work, one each
{plan_figures.EXPORT_SECONDS} s, with an instance for each process:

{table}

The memory is read right after the last export. The lines of {FLEET:,} processes extend the others by a straight line.
They are estimates: the garbage of Prometheus's runtime differs between runs.
[Operations](operations.md#what-the-metrics-cost) has the memory of 2,000 processes as measured."""


def _memory_rows(kind: str, found: dict[str, Any]) -> list[str]:
    rows = [f"| {kind} | {at['processes']:,} | {at['series']:,} | {at['memory']:.0f} |" for at in found["measured"]]
    extended, series = found["base"] + found["each"] * FLEET, FLEET * plan_figures.SERIES[kind]
    return [*rows, f"| {kind} | {FLEET:,}, extended | {series:,} | {extended:.0f} |"]


def _collector(collector: dict[str, Any]) -> str:
    rows = []
    for file, at in collector.items():
        spans, each = at["checkouts"] * plan_figures.SPANS_A_CHECKOUT, at["checkouts"] / at["cores"]
        cells = (f"`{file}`", f"{at['checkouts']:,.0f}", f"{spans:,.0f}", f"{at['cores']:.1f}", f"{each:,.0f}")
        rows.append(f"| {' | '.join(cells)} | {at['memory']:.0f} |")
    table = "\n".join(rows)
    return f"""\
The table shows what a real Collector passed on. Each checkout had {plan_figures.SPANS_A_CHECKOUT} spans. The sender ran
on the same machine. Cores are rounded to a tenth.
`collector.yaml` stands for an agent, because it removes SQL and queues on disk in the same way. `gateway.yaml`
had more room than the file gives (`num_traces: 2000000`, `decision_wait: 5s`).

| configuration | checkouts a second | spans a second | cores | checkouts a second of a core | memory, MiB |
| --- | ---: | ---: | ---: | ---: | ---: |
{table}"""


def _sampling(found: dict[str, int]) -> str:
    share = found["rest_kept"] / found["rest"]
    return f"""\
Of {found["traces"]:,} traces, {found["flagged"]:,} had a long hold, an error, retries or a wait:
the gateway kept {found["flagged_kept"]:,} of them. Of the other {found["rest"]:,} it kept {found["rest_kept"]:,},
which is {share:.1%}. Each trace was one span, and the gateway decided after 1 s, where `gateway.yaml` has 30 s."""


def _gateways(collector: dict[str, Any]) -> str:
    rate = FLEET * ARRIVALS
    core = collector["gateway.yaml"]["checkouts"] / collector["gateway.yaml"]["cores"]
    return f"""\
{FLEET:,} processes with {ARRIVALS} checkouts a second each make {rate:,} a second. By this run they
need {rate / core:,.0f} cores of gateways, which is the rate divided by the checkouts a second of a core.
`otel-pgpool plan` uses the round figures of several runs, of `collector-config/README.md`.
With `OTEL_PGPOOL_SPANS=slow`, only a share s of the checkouts leaves spans:
those that waited or held for `OTEL_PGPOOL_SLOW`, by default 0.1 s, failed, had a retry or became a long hold.
Then s times as many cores are needed: {rate * 0.01 / core:,.1f} if s is 1 %. The histograms of the wait and of
the hold tell s."""
