"""What a row of the table is: who competes, what is measured, what must be reached."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

OURS = "otel_pgpool"
STOCK = "psycopg2.pool"
PSYCOPG = "psycopg_pool"
QUEUEPOOL = "QueuePool"
DBUTILS = "DBUtils"
PEERS = (PSYCOPG, QUEUEPOOL, DBUTILS, STOCK)

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
    """The figure must reach the limit; otherwise it must not pass it."""
    worst: bool = False
    """Every round must keep the bound; otherwise the median must."""
    unit: str = "x"
    reason: str = ""
    """Why it is missed where it is, as far as that is known."""

    def judge(self, rounds: Sequence[Round]) -> tuple[float, bool]:
        """Give the figure over all rounds, and whether it was reached."""
        figures = [self.figure(played) for played in rounds]
        worst = min if self.at_least else max
        figure = worst(figures) if self.worst else statistics.median(figures)
        return figure, figure >= self.limit if self.at_least else figure <= self.limit

    @property
    def bound(self) -> str:
        """The limit as written in the table."""
        return f"{'>=' if self.at_least else '<='} {self.limit:g} {self.unit}".strip()


@dataclass(frozen=True)
class Column:
    """A metric as the report shows it."""

    metric: str
    header: str
    digits: int = 0


@dataclass(frozen=True)
class Row:
    """One kind of work."""

    name: str
    work: str
    contestants: tuple[str, ...]
    columns: tuple[Column, ...]
    measure: Callable[[Sequence[str], str], Round]
    """Called in a process of its own with the contestants to measure and the DSN."""
    targets: tuple[Target, ...]
    rounds: int = 5
    together: bool = False
    """The contestants share a process and take turns in short slices; otherwise each has a process to itself."""
    note: str = ""

    @property
    def module(self) -> str:
        """The module that its own process must import."""
        function = self.measure.func if isinstance(self.measure, partial) else self.measure
        return str(function.__module__)


def ratio(metric: str, one: str, other: str) -> Callable[[Round], float]:
    """``metric`` of ``one`` over that of ``other``, in the same round."""
    return lambda played: played[one][metric] / played[other][metric]


def to_best(metric: str, one: str, others: Sequence[str]) -> Callable[[Round], float]:
    """``metric`` of ``one`` over the highest among ``others``, in the same round."""
    return lambda played: played[one][metric] / max(played[other][metric] for other in others)


def value(metric: str, one: str) -> Callable[[Round], float]:
    """``metric`` of ``one`` itself."""
    return lambda played: played[one][metric]


def spread(rounds: Sequence[Round], contestant: str, metric: str) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile over the rounds."""
    return quartiles([played[contestant][metric] for played in rounds])


def quartiles(figures: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile; of a single figure, itself."""
    if len(figures) == 1:
        return figures[0], figures[0], figures[0]
    low, middle, high = statistics.quantiles(figures, n=4, method="inclusive")
    return low, middle, high
