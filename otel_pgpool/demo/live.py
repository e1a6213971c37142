"""The view of a running demo: log records as they come, and the pool's levels, redrawn in place on a terminal."""

from __future__ import annotations

import logging
import re
import threading
import time
from bisect import insort
from typing import TYPE_CHECKING

from opentelemetry.sdk.trace import SpanProcessor
from rich.console import Group
from rich.live import Live
from rich.table import Column, Table

from otel_pgpool.cli.report import percentile
from otel_pgpool.cli.terminal import EMPTY, HOLD, WAIT, duration, escape, make_line, short_place

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.trace import ReadableSpan
    from rich.console import Console, RenderableType
    from rich.text import Text
    from typing_extensions import Self

    from otel_pgpool import ConnectionPool
    from otel_pgpool.cli.terminal import Part

FILE_EXPORTERS = "opentelemetry.exporter.otlp.json.file"
OTLP_EXPORTERS = "opentelemetry.exporter.otlp.proto"
FOLDERS = re.compile(r"(?<= at )/\S*/(?=[^/\s]+:\d+ )")
"""Folders in a call site, as in ``at /srv/shop/web.py:12 serve``."""
DETAILS = re.compile(r"\n|; ")
"""Separators between the first sentence of a record and the details."""
LOGGERS = ("otel_pgpool", "opentelemetry")
REFRESH_PER_SECOND = 8
HOLD_ROWS = 3
MIN_FRACTION_SHOWN = 0.5
"""Fraction of the long-hold threshold from which a hold is shown."""
BAR = 24
LEVEL_STYLES = {"WARNING": "yellow", "ERROR": "red"}


class Waits(SpanProcessor):
    """The wait times, in seconds, of all checkouts that have ended, sorted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ordered: list[float] = []

    def on_end(self, span: ReadableSpan) -> None:
        """Add the wait time of a span."""
        wait = (span.attributes or {}).get("otel_pgpool.wait_time")
        if isinstance(wait, float):
            with self._lock:
                insort(self._ordered, wait)

    def __str__(self) -> str:
        """Return the percentiles; they are unknown as long as no checkout has left a span."""
        with self._lock:
            waits = [duration(percentile(self._ordered, rank)) if self._ordered else "-" for rank in (50, 99)]
        return "p50 {}  p99 {}".format(*waits)


class View(logging.Handler):
    """The view of one demo: steps and notable log records, and a line of levels each second.

    On a terminal the levels are drawn below, in place, and removed at the end.
    """

    def __init__(self, console: Console, seconds: float, long_hold: float) -> None:
        super().__init__(logging.WARNING)
        self.step = "starting"
        """Title of the present step of the run."""
        self.pool: ConnectionPool | None = None
        self.waits = Waits()
        self.write_error = ""
        """The error that kept the telemetry's files from being written; empty if there was none."""
        self._console = console
        self._seconds = seconds
        self._long_hold = long_hold
        self._began = 0.0
        self._last_text = ""
        self._closed = threading.Event()
        self._printer = threading.Thread(target=self._print_levels, name="view", daemon=True)
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
        else:
            self._printer.start()
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self._closed.set()
        self._live.stop()
        if self._printer.is_alive():
            self._printer.join()

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
        if text != self._last_text and not self._closed.is_set():
            self._last_text = text
            self._print((f"{record.levelname.lower()}: ", LEVEL_STYLES.get(record.levelname, "")), text)

    def draw(self) -> RenderableType:
        """Draw the present state."""
        step = make_line("  ", (self.step, "bold"))
        if self.pool is None:
            return step
        elapsed = min(self.elapsed, self._seconds)
        progress = _bar(elapsed / self._seconds, "green"), f"  {elapsed:.1f} of {self._seconds:g} s"
        levels = Table.grid(
            Column(style="dim", no_wrap=True),
            Column(no_wrap=True),
            Column(justify="right", no_wrap=True),
            Column(no_wrap=True),
            padding=(0, 2),
        )
        for row in self._rows(self.pool):
            levels.add_row(*map(make_line, row))
        return Group(make_line(), make_line("  otel-pgpool demo  ", *progress), step, make_line(), levels)

    def _rows(self, pool: ConnectionPool) -> Iterator[tuple[Part, Part, str, str]]:
        """Iterate over the levels, and the holds that are or become long: name, picture, figure, details."""
        stats = pool.stats()
        style = "red" if stats.utilization >= 0.95 else "yellow" if stats.utilization >= 0.8 else "cyan"
        used = f"{stats.used} used, {stats.idle} idle, at most {stats.maxconn}"
        yield "  utilization", _bar(stats.utilization, style), f"{stats.utilization:.0%}", used
        queue = (WAIT * 2 * min(stats.waiting, BAR // 2), "yellow")
        yield "  queue", queue, f"{stats.waiting}", f"waiting, {stats.queued:,} have waited so far"
        yield "  wait", str(self.waits), "", ""
        failed = f"{stats.timeouts} timed out, {stats.retries} retried"
        yield "  checkouts", "", f"{sum(stats.checkouts.values()):,}", failed
        yield "  long holds", "", f"{stats.long_holds:,}", f"so far, reported after {duration(self._long_hold)}"
        for holder in sorted(pool.holders(), key=lambda holder: -holder.held)[:HOLD_ROWS]:
            if holder.held >= MIN_FRACTION_SHOWN * self._long_hold:
                style = "red" if holder.held >= self._long_hold else "yellow"
                bar = _bar(min(1.0, holder.held / (2 * self._long_hold)), style)
                yield f"    {holder.thread}", bar, duration(holder.held), short_place(holder.where)

    def _print_levels(self) -> None:
        """Print a line of levels at each full second, as long as the pool is open."""
        while not self._closed.wait(1 - self.elapsed % 1):
            stats = self.pool and self.pool.stats()
            if stats and stats.status != "closed":
                levels = f"used {stats.used}/{stats.maxconn}  idle {stats.idle}  waiting {stats.waiting}"
                self._print(f"{levels}  wait {self.waits}  timeouts {stats.timeouts}")

    def _print(self, *parts: Part) -> None:
        self._console.print(make_line(f"{self.elapsed:5.1f} s  ", *parts), soft_wrap=True)


def _bar(filled: float, style: str) -> Text:
    full = round(filled * BAR)
    return make_line((HOLD * full, style), (EMPTY * (BAR - full), "dim"))
