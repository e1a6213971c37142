"""``python -m tests.fleet telemetry``: series and memory of a Prometheus, and spans through real Collectors.

What cannot be measured, for want of a Prometheus 3 (``PROMETHEUS``) or a Collector (``OTELCOL``), is said, and the last
measured figures stay.
"""

from __future__ import annotations

import argparse
import json
from statistics import linear_regression
from typing import Any

from tests.fleet.figures import MEASURED
from tests.fleet.telemetry_collector import sampling, throughput
from tests.fleet.telemetry_prometheus import exported, memory
from tests.support.collector import BINARY
from tests.support.external_programs import locate_program
from tests.support.prometheus import OTLP_SINCE, find_version

FILE = MEASURED / "telemetry.json"
FLEET = 2_000
PROCESSES = (50, 100, 200)


def main(arguments: list[str]) -> int:
    """Measure, and write the figures."""
    parser = argparse.ArgumentParser(prog="tests.fleet telemetry")
    parser.add_argument("--processes", type=int, nargs="+", default=PROCESSES, help="at least two numbers")
    parser.add_argument("--traces", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each Collector")
    options = parser.parse_args(arguments)
    measured: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {}
    version = find_version() if locate_program("prometheus") else ()
    if version >= (OTLP_SINCE,):
        measured["prometheus"] = {"version": ".".join(map(str, version)), **measure_prometheus(options.processes)}
    else:
        print("left out: the memory of a Prometheus, since PROMETHEUS names none that takes OTLP (3.0)")
    if BINARY:
        measured["collector"] = {file: throughput(file, options.seconds) for file in ("collector.yaml", "gateway.yaml")}
        measured["sampling"] = sampling(options.traces)
    else:
        print("left out: spans through Collectors, since OTELCOL names none")
    FILE.write_text(json.dumps(measured, indent=2) + "\n")
    return 0


def measure_prometheus(processes: list[int]) -> dict[str, Any]:
    """Return the series and MiB at each number of processes, by the kind of histograms, and the straight line."""
    found: dict[str, Any] = {}
    for kind, one in exported().items():
        at = [(number, *memory(one, number)) for number in processes]
        line = linear_regression([each[0] for each in at], [each[2] for each in at])
        found[kind] = {
            "measured": [dict(zip(("processes", "series", "memory"), each, strict=True)) for each in at],
            "base": line.intercept,
            "each": line.slope,
        }
    return found
