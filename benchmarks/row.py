"""A row of the table: its contestants, its measurement and its targets."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

OURS = "otel_pgpool"
PSYCOPG2 = "psycopg2.pool"
PSYCOPG = "psycopg_pool"
QUEUEPOOL = "QueuePool"
DBUTILS = "DBUtils"
PEERS = (PSYCOPG, QUEUEPOOL, DBUTILS, PSYCOPG2)

Sample = dict[str, float]
"""One contestant's figures in one round."""

Round = dict[str, Sample]
"""The samples of one round, by contestant."""


@dataclass(frozen=True)
class Target:
    """A figure computed within each round, and the bound that it must keep."""

    text: str
    figure: Callable[[Round], float]
    limit: float
    at_least: bool = False
    """Whether the limit is a minimum; otherwise it is a maximum."""
    worst: bool = False
    """Whether every round has to keep the limit; otherwise the median has to."""
    unit: str = "x"
    reason: str = ""
    """Why the target may be missed; empty if that is not known."""

    def judge(self, rounds: Sequence[Round]) -> tuple[float, bool]:
        """Return the figure of all rounds, and whether the target was reached."""
        figures = [self.figure(played) for played in rounds]
        worst = min if self.at_least else max
        figure = worst(figures) if self.worst else statistics.median(figures)
        return figure, figure >= self.limit if self.at_least else figure <= self.limit

    @property
    def bound(self) -> str:
        """The limit, as the table shows it."""
        return f"{'>=' if self.at_least else '<='} {self.limit:g} {self.unit}".strip()


@dataclass(frozen=True)
class Column:
    """A metric, as the report shows it."""

    metric: str
    header: str
    digits: int = 0


@dataclass(frozen=True)
class Row:
    """One kind of work, on which contestants are compared."""

    name: str
    work: str
    contestants: tuple[str, ...]
    columns: tuple[Column, ...]
    measure: Callable[[Sequence[str], str], Round]
    """The measurement, called in a process of its own with the names of contestants and the DSN."""
    targets: tuple[Target, ...]
    rounds: int = 5
    together: bool = False
    """Whether the contestants share a process and take turns in short slices; otherwise each has its own process."""
    note: str = ""

    @property
    def module(self) -> str:
        """The module with the measurement, which its process imports."""
        function = self.measure.func if isinstance(self.measure, partial) else self.measure
        return str(function.__module__)


def ratio(metric: str, one: str, other: str) -> Callable[[Round], float]:
    """Return a function that divides the metric of one contestant by that of another, in the same round."""
    return lambda played: played[one][metric] / played[other][metric]


def to_best(metric: str, one: str, others: Sequence[str]) -> Callable[[Round], float]:
    """Return a function that divides the metric of one contestant by the highest of others, in the same round."""
    return lambda played: played[one][metric] / max(played[other][metric] for other in others)


def value(metric: str, one: str) -> Callable[[Round], float]:
    """Return a function that reads the metric of one contestant."""
    return lambda played: played[one][metric]


def spread(rounds: Sequence[Round], contestant: str, metric: str) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile of the rounds."""
    return quartiles([played[contestant][metric] for played in rounds])


def quartiles(figures: Sequence[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile; a single figure is all three."""
    if len(figures) == 1:
        return figures[0], figures[0], figures[0]
    low, middle, high = statistics.quantiles(figures, n=4, method="inclusive")
    return low, middle, high
