"""The view of a running demo: a live display on a terminal, plain lines elsewhere, and the data that they show."""

from __future__ import annotations

import logging
import re
import threading
import time
from bisect import insort
from collections import deque
from dataclasses import dataclass, replace
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

LOG_LINES = 6
FILE_EXPORTERS = "opentelemetry.exporter.otlp.json.file"
OTLP_EXPORTERS = "opentelemetry.exporter.otlp.proto"
FOLDERS = re.compile(r"(?<= at )/\S*/(?=[^/\s]+:\d+ )")
"""Folders in a call site, as in ``at /srv/shop/web.py:12 serve``."""
DETAILS = re.compile(r"\n|; ")
"""Separators between the first sentence of a record and the details."""
LOGGERS = {"otel_pgpool": logging.INFO, "opentelemetry": logging.WARNING}
REFRESH_PER_SECOND = 8
HOLD_ROWS = 3
MIN_FRACTION_SHOWN = 0.5
"""Fraction of the long-hold threshold from which a hold is shown."""
BAR = 24
LEVEL_STYLES = {"INFO": "green", "WARNING": "yellow", "ERROR": "red"}


@dataclass(frozen=True)
class LogLine:
    """A log record as displayed; ``at`` is in seconds since the start."""

    at: float
    level: str
    text: str
    times: int = 1
    """Number of consecutive records with this text."""

    def __str__(self) -> str:
        """Return the text, and the number of records if there were several."""
        return f"{self.text} ({self.times} times)" if self.times > 1 else self.text


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


class Monitor(logging.Handler):
    """The state of one demo, as its view displays it."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.step = "starting"
        """Title of the present step of the run."""
        self.pool: ConnectionPool | None = None
        self.waits = Waits()
        self.lines: deque[LogLine] = deque(maxlen=LOG_LINES)
        self.unseen: deque[LogLine] = deque(maxlen=1000)
        """Lines that `PlainView` has not printed yet."""
        self.write_error = ""
        """The error that kept the telemetry's files from being written; empty if there was none."""
        self._began = 0.0
        self._prefix = ""
        self._levels: dict[str, tuple[int, bool]] = {}

    @property
    def elapsed(self) -> float:
        """Seconds since the traffic began, or 0."""
        return time.monotonic() - self._began if self.pool else 0.0

    def begin(self, pool: ConnectionPool) -> None:
        """Set the pool; the traffic begins now."""
        self._began = time.monotonic()
        self.pool = pool
        self._prefix = f"pool {pool.name}: "  # removed from the lines, because there is only one pool

    def emit(self, record: logging.LogRecord) -> None:
        """Store the beginning of a record's message, without its list of holders or places, and without a traceback."""
        text = FOLDERS.sub("", escape(DETAILS.split(record.getMessage(), maxsplit=1)[0]).removeprefix(self._prefix))
        if record.name.startswith(OTLP_EXPORTERS):
            text = f"OTLP: {text}"
        if record.name.startswith(FILE_EXPORTERS):
            self.write_error = text
        line = LogLine(self.elapsed, record.levelname, text)
        for lines in (self.lines, self.unseen) if record.levelno >= logging.WARNING else (self.lines,):
            if lines and lines[-1].text == text:
                lines.append(replace(line, times=lines.pop().times + 1))
            else:
                lines.append(line)

    def take_unseen(self) -> list[LogLine]:
        """Return the lines that `PlainView` has to print, and forget them."""
        self.acquire()
        try:
            lines = list(self.unseen)
            self.unseen.clear()
        finally:
            self.release()
        return lines

    def attach(self) -> None:
        """Add this handler to the loggers, and keep their records off the terminal, where they would break the view."""
        for name, level in LOGGERS.items():
            logger = logging.getLogger(name)
            self._levels[name] = (logger.level, logger.propagate)
            logger.setLevel(level)
            logger.propagate = False
            logger.addHandler(self)

    def detach(self) -> None:
        """Restore the loggers."""
        for name, (level, propagate) in self._levels.items():
            logger = logging.getLogger(name)
            logger.removeHandler(self)
            logger.setLevel(level)
            logger.propagate = propagate


class LiveView:
    """A display that is redrawn in place, and removed at the end, so that the report stands alone."""

    def __init__(self, console: Console, monitor: Monitor, long_hold: float) -> None:
        self._monitor = monitor
        self._long_hold = long_hold
        self._live = Live(
            console=console, get_renderable=self.draw, refresh_per_second=REFRESH_PER_SECOND, transient=True
        )

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self._live.stop()

    def show_step(self, title: str) -> None:
        """Set the title of the present step, which the next refresh shows."""
        self._monitor.step = title

    def draw(self) -> RenderableType:
        """Draw the present state."""
        monitor = self._monitor
        step = make_line("  ", (monitor.step, "bold"))
        if monitor.pool is None:
            return step
        elapsed = min(monitor.elapsed, monitor.seconds)
        progress = _bar(elapsed / monitor.seconds, "green"), f"  {elapsed:.1f} of {monitor.seconds:g} s"
        levels = Table.grid(
            Column(style="dim", no_wrap=True),
            Column(no_wrap=True),
            Column(justify="right", no_wrap=True),
            Column(no_wrap=True),
            padding=(0, 2),
        )
        for row in self._rows(monitor.pool):
            levels.add_row(*map(make_line, row))
        headline = make_line("  otel-pgpool demo  ", *progress)
        return Group(make_line(), headline, step, make_line(), levels, make_line(), self._log())

    def _log(self) -> Table:
        log = Table.grid(Column(no_wrap=True))
        for line in list(self._monitor.lines):
            level = (f"{line.level.lower():<9}", LEVEL_STYLES.get(line.level, ""))
            log.add_row(make_line((f"  {line.at:5.1f} s  ", "dim"), level, str(line)))
        return log

    def _rows(self, pool: ConnectionPool) -> Iterator[tuple[Part, Part, str, str]]:
        """Iterate over the levels, and the holds that are or become long: name, picture, figure, details."""
        stats = pool.stats()
        style = "red" if stats.utilization >= 0.95 else "yellow" if stats.utilization >= 0.8 else "cyan"
        used = f"{stats.used} used, {stats.idle} idle, at most {stats.maxconn}"
        yield "  utilization", _bar(stats.utilization, style), f"{stats.utilization:.0%}", used
        queue = (WAIT * 2 * min(stats.waiting, BAR // 2), "yellow")
        yield "  queue", queue, f"{stats.waiting}", f"waiting, {stats.queued:,} have waited so far"
        yield "  wait", str(self._monitor.waits), "", ""
        failed = f"{stats.timeouts} timed out, {stats.retries} retried"
        yield "  checkouts", "", f"{sum(stats.checkouts.values()):,}", failed
        yield "  long holds", "", f"{stats.long_holds:,}", f"so far, reported after {duration(self._long_hold)}"
        for holder in sorted(pool.holders(), key=lambda holder: -holder.held)[:HOLD_ROWS]:
            if holder.held >= MIN_FRACTION_SHOWN * self._long_hold:
                style = "red" if holder.held >= self._long_hold else "yellow"
                bar = _bar(min(1.0, holder.held / (2 * self._long_hold)), style)
                yield f"    {holder.thread}", bar, duration(holder.held), short_place(holder.where)


def _bar(filled: float, style: str) -> Text:
    full = round(filled * BAR)
    return make_line((HOLD * full, style), (EMPTY * (BAR - full), "dim"))


class PlainView:
    """A line each second, each step and each notable log record: for files, pipes and terminals that cannot redraw."""

    def __init__(self, console: Console, monitor: Monitor) -> None:
        self._console = console
        self._monitor = monitor
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._print_each_second, name="view", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self._closed.set()
        self._thread.join()
        self.print_unseen()

    def show_step(self, title: str) -> None:
        """Let the title of the present step be printed with the next line of levels."""
        self._monitor.unseen.append(LogLine(self._monitor.elapsed, "", f"-- {title}"))

    def print_unseen(self) -> None:
        """Print the lines that were not printed before."""
        for line in self._monitor.take_unseen():
            level = f"{line.level.lower()}: " if line.level else ""
            self._console.print(make_line(f"{line.at:5.1f} s  {level}{line}"), soft_wrap=True)

    def _print_each_second(self) -> None:
        """Print a line of levels at each full second, as long as the pool is open."""
        monitor = self._monitor
        while not self._closed.wait(1 - monitor.elapsed % 1):
            stats = monitor.pool and monitor.pool.stats()
            if stats and stats.status != "closed":
                used = f"used {stats.used}/{stats.maxconn}  idle {stats.idle}  waiting {stats.waiting}"
                text = f"{used}  wait {monitor.waits}  timeouts {stats.timeouts}"
                monitor.unseen.append(LogLine(monitor.elapsed, "", text))
            self.print_unseen()


View = LiveView | PlainView
