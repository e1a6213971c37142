"""What real Collectors with the configurations of ``collector-config/`` pass on, and what tail sampling keeps."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from opentelemetry.trace import Status, StatusCode

from otel_pgpool.telemetry import names
from tests.support.collector import BINARY, FOLDER, QUICK, Collector, wait_until
from tests.support.collector_targets import open_targets
from tests.support.otlp_sender import Program, program, trace_id

ROOMY = ("processors::tail_sampling::num_traces: 2000000", "processors::tail_sampling::decision_wait: 5s")
LINE = re.compile(r"([\d,]+) checkouts a second for \d+ s, on ([\d.]+) of \d+ cores and (\d+) MiB; (\d+) messages")
JUDGED = "otelcol_processor_tail_sampling_global_count_traces_sampled(_total)?"
FLAGGED: tuple[dict[str, Any], ...] = ({"long_hold": True}, {"retries": 2}, {"wait_time": 0.11}, {"error": True})
EVERY = 50
"""Of so many traces one is flagged."""


def throughput(file: str, seconds: float) -> dict[str, float]:
    """Return the checkouts a second that a Collector with this file passes on, its cores and its MiB."""
    over = [word for each in ROOMY for word in ("--over", each)] if file == "gateway.yaml" else []
    command = [sys.executable, str(FOLDER / "measure.py"), BINARY, "--seconds", str(seconds), "--file", file, *over]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = LINE.match(done.stdout)
    assert found, done.stdout
    checkouts, cores, memory, refused = (float(each.replace(",", "")) for each in found.groups())
    return {"checkouts": checkouts, "cores": cores, "memory": memory, "refused": refused}


def sampling(traces: int) -> dict[str, int]:
    """Return how many flagged traces and others a gateway was sent, and how many of each it kept."""
    flagged, rest = set[str](), set[str]()
    with (
        tempfile.TemporaryDirectory() as folder,
        open_targets() as targets,
        Collector("gateway.yaml", Path(folder), QUICK, **targets.environ) as gateway,
        program(gateway) as sender,
    ):
        for number in range(traces):
            if number % EVERY:
                rest.add(sender.checkout())
            else:
                flagged.add(_flagged(sender, FLAGGED[number // EVERY % len(FLAGGED)]))
            if number % 500 == 499:
                sender.flush()
        sender.flush()
        wait_until(lambda: gateway.own_metric(JUDGED) >= traces, 120.0)
        sampled = gateway.own_metric(JUDGED, sampled="true")
        targets.jaeger.wait_for(lambda r: len({span.trace_id for span in r.spans}) == sampled)
        kept = {span.trace_id for span in targets.jaeger.spans}
        targets.jaeger.clear()  # these have not all attributes that the registry requires
    return {
        "traces": traces,
        "flagged": len(flagged),
        "flagged_kept": len(flagged & kept),
        "rest": len(rest),
        "rest_kept": len(rest & kept),
    }


def _flagged(sender: Program, attributes: dict[str, Any]) -> str:
    if "error" not in attributes:
        return sender.checkout(**attributes)
    failed = sender.span(names.SPAN_CHECKOUT, {names.ATTR_WAIT_TIME: 0.01, names.ATTR_RETRIES: 0})
    failed.set_status(Status(StatusCode.ERROR))
    failed.end()
    return trace_id(failed)
