"""A Prometheus for each kind of histograms, which has been told the same history."""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import openmetrics
from tests.support.metric_history import CLASSIC, EXPONENTIAL, STEP, History, without
from tests.support.prometheus import CONVERTS_SINCE, Prometheus, find_version, promtool

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
    from typing_extensions import Self

KINDS = ["classic", "exponential", "converted", "both", "mixed"]
"""With buckets by ``le``; exponential; made by Prometheus from the first; both of each process; one of each process."""

WINDOW = 5 * 60
"""Seconds over which rates are recorded."""


class Told:
    """A Prometheus that has been told a history, with histograms of a kind."""

    def __init__(self, prometheus: Prometheus, history: History, kind: str) -> None:
        self.prometheus, self.history, self.kind = prometheus, history, kind

    def over_time(self, expression: str, step: float = STEP) -> list[dict[str, Any]]:
        return self.prometheus.over_time(expression, self.history.begin, self.history.end, step)

    def figures(self, expression: str) -> dict[frozenset[tuple[str, str]], dict[float, float]]:
        """Return the figures of an expression by labels and time, as soon as there are samples for its whole window.

        What is not a number is left out.
        """
        since = self.history.begin + WINDOW
        found = {}
        for each in self.over_time(expression):
            values = ((float(at), float(value)) for at, value in each["values"])
            figures = {at: value for at, value in values if at > since and not math.isnan(value)}
            found[frozenset(each["metric"].items())] = figures
        return found


class ToldByKind:
    """One for each kind, started when it is first asked for. As a context manager it ends them."""

    def __init__(self, history: History, folder: Path) -> None:
        self._history, self._folder = history, folder
        self._running = ExitStack()
        self._started: dict[str, Told] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._running.close()

    def of_kind(self, kind: str) -> Told:
        """Tell by OTLP where it is received, else by promtool's blocks, which have classic histograms only."""
        if kind not in self._started:
            folder = self._folder / kind
            prometheus = Prometheus(folder, converts=kind == "converted")
            if not prometheus.receives_otlp and kind != "classic":
                pytest.skip("this Prometheus has no OTLP receiver, which takes native histograms")
            if kind == "converted" and find_version() < CONVERTS_SINCE:
                pytest.skip("this Prometheus does not convert histograms")
            folder.mkdir()
            if not prometheus.receives_otlp:
                backfill(folder, self._history)
            self._running.enter_context(prometheus)
            if prometheus.receives_otlp:
                prometheus.receive(exports(kind, self._history))
            self._started[kind] = Told(prometheus, self._history, kind)
        return self._started[kind]


def exports(kind: str, history: History) -> Iterator[ExportMetricsServiceRequest]:
    """Iterate over what is sent to the Prometheus that is to have histograms of a kind."""
    for export in history.exports:
        if kind == "both":
            yield export
        else:
            is_exponential = kind == "exponential" or (kind == "mixed" and "shop-1" in str(export))
            yield without(CLASSIC if is_exponential else EXPONENTIAL, export)


def backfill(folder: Path, history: History) -> None:
    """Put a history into the data of a Prometheus that does not run yet."""
    file = folder / "history.txt"
    file.write_text(openmetrics.text(exports("classic", history)))
    promtool("tsdb", "create-blocks-from", "openmetrics", file, folder / "data")


def has_figures(found: Iterable[dict[str, Any]]) -> bool:
    """Return whether an answer has a number, or a native histogram, which has no value for none."""
    return any(
        "histograms" in each or any(not math.isnan(float(value)) for _at, value in each["values"]) for each in found
    )
