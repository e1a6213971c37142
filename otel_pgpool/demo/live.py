"""The view of a running demo: log records as they come, and the pool's levels, redrawn in place on a terminal."""

from __future__ import annotations

import logging
import re
import time
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live

from otel_pgpool.cli.terminal import HOLD, escape, make_line

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from typing_extensions import Self

    from otel_pgpool import ConnectionPool
    from otel_pgpool.cli.terminal import Part
    from otel_pgpool.stats import PoolStats

FILE_EXPORTERS = "opentelemetry.exporter.otlp.json.file"
OTLP_EXPORTERS = "opentelemetry.exporter.otlp.proto"
FOLDERS = re.compile(r"(?<= at )/\S*/(?=[^/\s]+:\d+ )")
"""Folders in a call site, as in ``at /srv/shop/web.py:12 serve``."""
DETAILS = re.compile(r"\n|; ")
"""Separators between the first sentence of a record and the details."""
LOGGERS = ("otel_pgpool", "opentelemetry")
REFRESH_PER_SECOND = 8
BAR = 24
LEVEL_STYLES = {"WARNING": "yellow", "ERROR": "red"}


class View(logging.Handler):
    """The view of one demo: steps and notable log records.

    On a terminal the pool's levels are drawn below, in place, and removed at the end.
    """

    def __init__(self, console: Console, seconds: float) -> None:
        super().__init__(logging.WARNING)
        self.step = "starting"
        """Title of the present step of the run."""
        self.pool: ConnectionPool | None = None
        self.write_error = ""
        """The error that kept the telemetry's files from being written; empty if there was none."""
        self._console = console
        self._seconds = seconds
        self._began = 0.0
        self._last_text = ""
        self._is_open = True
        self._live = Live(
            console=console, get_renderable=self.draw, refresh_per_second=REFRESH_PER_SECOND, transient=True
        )

    def __enter__(self) -> Self:
        """Show the view, and keep the loggers' records off the terminal otherwise, where they would break the view."""
        for name in LOGGERS:
            logging.getLogger(name).propagate = False
            logging.getLogger(name).addHandler(self)
        if self._console.is_terminal:
            self._live.start(refresh=True)
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self._is_open = False
        self._live.stop()

    @property
    def elapsed(self) -> float:
        """Seconds since the traffic began, or 0."""
        return time.monotonic() - self._began if self.pool else 0.0

    def begin(self, pool: ConnectionPool) -> None:
        """Set the pool; the traffic begins now."""
        self._began = time.monotonic()
        self.pool = pool

    def show_step(self, title: str) -> None:
        """Show the title of the present step."""
        self.step = title
        if not self._console.is_terminal:
            self._print(f"-- {title}")

    def emit(self, record: logging.LogRecord) -> None:
        """Print the beginning of a record's message, without its list of holders or places; not twice in a row."""
        prefix = f"pool {self.pool.name}: " if self.pool else ""  # there is only one pool
        text = FOLDERS.sub("", escape(DETAILS.split(record.getMessage(), maxsplit=1)[0]).removeprefix(prefix))
        if record.name.startswith(OTLP_EXPORTERS):
            text = f"OTLP: {text}"
        if record.name.startswith(FILE_EXPORTERS):
            self.write_error = text
        if text != self._last_text and self._is_open:
            self._last_text = text
            self._print((f"{record.levelname.lower()}: ", LEVEL_STYLES.get(record.levelname, "")), text)

    def draw(self) -> RenderableType:
        """Draw the present state."""
        step = make_line("  ", (self.step, "bold"))
        if self.pool is None:
            return step
        elapsed = min(self.elapsed, self._seconds)
        progress = (HOLD * round(elapsed / self._seconds * BAR), "green"), f"  {elapsed:.1f} of {self._seconds:g} s"
        levels = [
            make_line((f"  {name:<12}", "dim"), f"{figure:>6}  ", details)
            for name, figure, details in _levels(self.pool.stats())
        ]
        return Group(make_line(), make_line("  otel-pgpool demo  ", *progress), step, make_line(), *levels)

    def _print(self, *parts: Part) -> None:
        self._console.print(make_line(f"{self.elapsed:5.1f} s  ", *parts), soft_wrap=True)


def _levels(stats: PoolStats) -> tuple[tuple[str, str, str], ...]:
    """Return the name, the figure and the details of each level and total."""
    used = f"{stats.used} used, {stats.idle} idle, at most {stats.maxconn}"
    failed = f"{stats.timeouts} timed out, {stats.retries} retried"
    return (
        ("utilization", f"{stats.utilization:.0%}", used),
        ("queue", f"{stats.waiting}", f"waiting, {stats.queued:,} have waited so far"),
        ("checkouts", f"{sum(stats.checkouts.values()):,}", failed),
        ("long holds", f"{stats.long_holds:,}", "so far"),
    )
