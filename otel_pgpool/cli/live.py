"""The view of a running demo: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live

from otel_pgpool.cli.drawing import MAX_WIDTH, cut, duration, glyphs_for, short_place
from otel_pgpool.cli.lines import joined
from otel_pgpool.cli.monitor import LOG_LINES

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console, RenderableType
    from rich.text import Text
    from typing_extensions import Self

    from otel_pgpool.cli.monitor import LogLine, Monitor
    from otel_pgpool.stats import Holder, PoolStats

REFRESH_PER_SECOND = 8
HOLD_ROWS = 3
SHOWN_FROM = 0.5
"""Fraction of the long-hold threshold from which a hold is shown."""
BAR = 24
LEVEL_STYLES = {"INFO": "green", "WARNING": "yellow", "ERROR": "red"}


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

    def scene(self, title: str) -> None:
        """Set the title of the present scene, which the next refresh shows."""
        self._monitor.scene = title

    def _draw(self) -> RenderableType:
        levels = self._monitor.levels()
        scene = self._cut(joined("  ", (self._monitor.scene, "bold")))
        if levels is None:
            return Group(scene)
        parts = [self._headline(), scene], self._levels(levels), self._holds(levels), self._log()
        return Group(*(line for part in parts for line in (joined(), *part)))

    def _headline(self) -> Text:
        seconds = self._monitor.seconds
        elapsed = min(self._monitor.elapsed, seconds)
        bar = self._bar(elapsed / seconds, "green")
        return self._cut(joined("  otel-pgpool demo  ", bar, f"  {elapsed:.1f} of {seconds:g} s"))

    def _bar(self, filled: float, style: str, width: int = BAR) -> Text:
        full = round(filled * width)
        return joined((self._glyphs.hold * full, style), (self._glyphs.empty * (width - full), "dim"))

    def _levels(self, levels: PoolStats) -> list[Text]:
        style = "red" if levels.utilization >= 0.95 else "yellow" if levels.utilization >= 0.8 else "cyan"
        used = f"{levels.used} used, {levels.idle} idle, at most {levels.maxconn}"
        queue = joined((self._glyphs.wait * 2 * min(levels.waiting, BAR // 2), "yellow"))
        retries = "1 retry" if levels.retries == 1 else f"{levels.retries} retries"
        rows = [
            ("utilization", self._bar(levels.utilization, style), f"{levels.utilization:4.0%}", used),
            ("queue", queue, f"{levels.waiting}", f"waiting, {levels.queued:,} have waited so far"),
            ("wait", joined(waits(self._monitor)), "", ""),
            ("checkouts", joined(), f"{sum(levels.checkouts.values()):,}", f"{levels.timeouts} timed out, {retries}"),
        ]
        return [self._level(*row) for row in rows]

    def _level(self, name: str, picture: Text, figure: str, details: str) -> Text:
        picture.pad_right(BAR - picture.cell_len)
        return self._cut(joined((f"  {name:<13}", "dim"), picture, f"{figure:>7}   ", details))

    def _holds(self, levels: PoolStats) -> list[Text]:
        """Return the lines of the long holds, always the same number, so that the lines below do not move."""
        holders = self._monitor.long_holds(self._long_hold * SHOWN_FROM)
        rows = [self._hold(holder) for holder in holders[:HOLD_ROWS]]
        so_far = f"so far, flagged at {duration(self._long_hold)}"
        head = self._level("long holds", joined(), f"{levels.long_holds:,}", so_far)
        return [head, *rows, *(joined() for _ in range(HOLD_ROWS - len(rows)))]

    def _hold(self, holder: Holder) -> Text:
        style = "red" if holder.held >= self._long_hold else "yellow"
        bar = self._bar(min(1.0, holder.held / (2 * self._long_hold)), style, BAR // 2)
        place = (short_place(holder.where), "dim")
        return self._cut(joined(f"    {holder.thread}  ", bar, f"  {duration(holder.held):>7}  ", place))

    def _log(self) -> list[Text]:
        lines = list(self._monitor.lines)
        return [self._log_line(line) for line in lines] + [joined() for _ in range(LOG_LINES - len(lines))]

    def _log_line(self, line: LogLine) -> Text:
        level = (f"{line.level.lower():<8}", LEVEL_STYLES.get(line.level, ""))
        return self._cut(joined((f"  {line.at:5.1f} s  ", "dim"), level, " ", str(line)))

    def _cut(self, line: Text) -> Text:
        return cut(line, min(self._console.width, MAX_WIDTH), self._glyphs)


class PlainView:
    """A line each second and each notable log record: for files, pipes and terminals that cannot redraw."""

    def __init__(self, console: Console, monitor: Monitor) -> None:
        self._console = console
        self._monitor = monitor
        self._ended = threading.Event()
        self._printing = threading.Lock()
        self._thread = threading.Thread(target=self._tick, name="view", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._print()

    def scene(self, title: str) -> None:
        """Print the title of the present scene."""
        self._monitor.scene = title
        self._print(f"-- {title}")

    def _tick(self) -> None:
        """Print a line at each full second, as long as the pool is open."""
        while not self._ended.wait(math.floor(self._monitor.elapsed + 0.5) + 1 - self._monitor.elapsed):
            levels = self._monitor.levels()
            if levels and levels.status != "closed":
                level = f"used {levels.used}/{levels.maxconn}  idle {levels.idle}  waiting {levels.waiting}"
                self._print(f"{level}  wait {waits(self._monitor)}  timeouts {levels.timeouts}")

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
        self._console.print(joined(f"{seconds:5.1f} s  {text}"), soft_wrap=True)


def waits(monitor: Monitor) -> str:
    """Return the percentiles of the waits so far."""
    p50, p99 = ("-" if wait is None else duration(wait) for wait in monitor.waits.percentiles(50, 99))
    return f"p50 {p50}  p99 {p99}"


View = LiveView | PlainView
