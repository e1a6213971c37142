"""The view of a running demo: a live display on a terminal, plain lines elsewhere, and the data that they show."""

from __future__ import annotations

import logging
import math
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

from otel_pgpool.cli.report import percentile
from otel_pgpool.cli.terminal import MAX_WIDTH, crop, duration, escape, glyphs_for, make_line, short_place

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from opentelemetry.sdk.trace import ReadableSpan
    from rich.console import Console, RenderableType
    from rich.text import Text
    from typing_extensions import Self

    from otel_pgpool import ConnectionPool
    from otel_pgpool.stats import Holder, PoolStats

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
    notable: bool
    """Whether the level is WARNING or above."""
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

    def percentiles(self, *ranks: float) -> Sequence[float | None]:
        """Return percentiles of the wait times; None as long as no checkout has left a span."""
        with self._lock:
            return [percentile(self._ordered, rank) if self._ordered else None for rank in ranks]


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

    def levels(self) -> PoolStats | None:
        """Return the pool's figures, or None if there is no pool yet."""
        return self.pool.stats() if self.pool else None

    def long_holds(self, threshold: float) -> list[Holder]:
        """Return the holds that have lasted ``threshold`` seconds or more, the longest first."""
        holders = self.pool.holders() if self.pool else []
        return sorted((holder for holder in holders if holder.held >= threshold), key=lambda holder: -holder.held)

    def emit(self, record: logging.LogRecord) -> None:
        """Store the beginning of a record's message, without its list of holders or places, and without a traceback."""
        text = FOLDERS.sub("", escape(DETAILS.split(record.getMessage(), maxsplit=1)[0]).removeprefix(self._prefix))
        if record.name.startswith(OTLP_EXPORTERS):
            text = f"OTLP: {text}"
        if record.name.startswith(FILE_EXPORTERS):
            self.write_error = text
        line = LogLine(self.elapsed, record.levelname, text, record.levelno >= logging.WARNING)
        for lines in (self.lines, self.unseen):
            if lines and lines[-1].text == text:
                lines.append(replace(line, times=lines.pop().times + 1))
            else:
                lines.append(line)

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
        self._levels.clear()


class LiveView:
    """A display that is redrawn in place, and removed at the end, so that the report stands alone."""

    def __init__(self, console: Console, monitor: Monitor, long_hold: float) -> None:
        self._console = console
        self._monitor = monitor
        self._glyphs = glyphs_for(console.encoding)
        self._long_hold = long_hold
        self._live = Live(
            console=console, get_renderable=self._draw, refresh_per_second=REFRESH_PER_SECOND, transient=True
        )

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()

    def show_step(self, title: str) -> None:
        """Set the title of the present step, which the next refresh shows."""
        self._monitor.step = title

    def _draw(self) -> RenderableType:
        levels = self._monitor.levels()
        step = self._crop(make_line("  ", (self._monitor.step, "bold")))
        if levels is None:
            return Group(step)
        parts = [self._headline(), step], self._levels(levels), self._holds(levels), self._log()
        return Group(*(line for part in parts for line in (make_line(), *part)))

    def _headline(self) -> Text:
        seconds = self._monitor.seconds
        elapsed = min(self._monitor.elapsed, seconds)
        bar = self._bar(elapsed / seconds, "green")
        return self._crop(make_line("  otel-pgpool demo  ", bar, f"  {elapsed:.1f} of {seconds:g} s"))

    def _bar(self, filled: float, style: str, width: int = BAR) -> Text:
        full = round(filled * width)
        return make_line((self._glyphs.hold * full, style), (self._glyphs.empty * (width - full), "dim"))

    def _levels(self, levels: PoolStats) -> list[Text]:
        style = "red" if levels.utilization >= 0.95 else "yellow" if levels.utilization >= 0.8 else "cyan"
        used = f"{levels.used} used, {levels.idle} idle, at most {levels.maxconn}"
        queue = make_line((self._glyphs.wait * 2 * min(levels.waiting, BAR // 2), "yellow"))
        retries = "1 retry" if levels.retries == 1 else f"{levels.retries} retries"
        served = sum(levels.checkouts.values())
        rows = [
            ("utilization", self._bar(levels.utilization, style), f"{levels.utilization:4.0%}", used),
            ("queue", queue, f"{levels.waiting}", f"waiting, {levels.queued:,} have waited so far"),
            ("wait", make_line(_describe_waits(self._monitor)), "", ""),
            ("checkouts", make_line(), f"{served:,}", f"{levels.timeouts} timed out, {retries}"),
        ]
        return [self._level(*row) for row in rows]

    def _level(self, name: str, picture: Text, figure: str, details: str) -> Text:
        picture.pad_right(BAR - picture.cell_len)
        return self._crop(make_line((f"  {name:<13}", "dim"), picture, f"{figure:>7}   ", details))

    def _holds(self, levels: PoolStats) -> list[Text]:
        """Return the lines of the long holds, always the same number, so that the lines below do not move."""
        holders = self._monitor.long_holds(self._long_hold * MIN_FRACTION_SHOWN)
        rows = [self._hold(holder) for holder in holders[:HOLD_ROWS]]
        so_far = f"so far, reported after {duration(self._long_hold)}"
        head = self._level("long holds", make_line(), f"{levels.long_holds:,}", so_far)
        return [head, *rows, *(make_line() for _ in range(HOLD_ROWS - len(rows)))]

    def _hold(self, holder: Holder) -> Text:
        style = "red" if holder.held >= self._long_hold else "yellow"
        bar = self._bar(min(1.0, holder.held / (2 * self._long_hold)), style, BAR // 2)
        place = (short_place(holder.where), "dim")
        return self._crop(make_line(f"    {holder.thread}  ", bar, f"  {duration(holder.held):>7}  ", place))

    def _log(self) -> list[Text]:
        lines = list(self._monitor.lines)
        return [self._log_line(line) for line in lines] + [make_line() for _ in range(LOG_LINES - len(lines))]

    def _log_line(self, line: LogLine) -> Text:
        level = (f"{line.level.lower():<8}", LEVEL_STYLES.get(line.level, ""))
        return self._crop(make_line((f"  {line.at:5.1f} s  ", "dim"), level, " ", str(line)))

    def _crop(self, line: Text) -> Text:
        return crop(line, min(self._console.width, MAX_WIDTH), self._glyphs)


class PlainView:
    """A line each second and each notable log record: for files, pipes and terminals that cannot redraw."""

    def __init__(self, console: Console, monitor: Monitor) -> None:
        self._console = console
        self._monitor = monitor
        self._closed = threading.Event()
        self._printing = threading.Lock()
        self._thread = threading.Thread(target=self._print_levels, name="view", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closed.set()
        self._thread.join()
        self._print()

    def show_step(self, title: str) -> None:
        """Print the title of the present step."""
        self._monitor.step = title
        self._print(f"-- {title}")

    def _print_levels(self) -> None:
        """Print a line at each full second, as long as the pool is open."""
        while not self._closed.wait(math.floor(self._monitor.elapsed + 0.5) + 1 - self._monitor.elapsed):
            levels = self._monitor.levels()
            if levels and levels.status != "closed":
                level = f"used {levels.used}/{levels.maxconn}  idle {levels.idle}  waiting {levels.waiting}"
                self._print(f"{level}  wait {_describe_waits(self._monitor)}  timeouts {levels.timeouts}")

    def _print(self, *texts: str) -> None:
        """Print texts after the log records received before."""
        with self._printing:
            while self._monitor.unseen:
                line = self._monitor.unseen.popleft()
                if line.notable:
                    self._print_at(line.at, f"{line.level.lower()}: {line}")
            for text in texts:
                self._print_at(self._monitor.elapsed, text)

    def _print_at(self, seconds: float, text: str) -> None:
        self._console.print(make_line(f"{seconds:5.1f} s  {text}"), soft_wrap=True)


def _describe_waits(monitor: Monitor) -> str:
    """Return the percentiles of the waits so far."""
    p50, p99 = ("-" if wait is None else duration(wait) for wait in monitor.waits.percentiles(50, 99))
    return f"p50 {p50}  p99 {p99}"


View = LiveView | PlainView
